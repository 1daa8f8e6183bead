"""torchvision's detectors as workers of maskrcnn.py; runs in an environment of its own."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d
from worker import serve

SETTINGS = ("plain", "channels_last", "bfloat16")
MODELS = ("r50_fpn", "r101_fpn", "x101_fpn", "r50_c4", "keypoint_r50_fpn", "resnet50")
BODY = 800, 1088  # of the image for "resnet50"


def build(name: str, short_side: int, max_side: int) -> torch.nn.Module:
    """A model of `MODELS`, those that torchvision has no function for put together from its parts."""
    sides = {"min_size": short_side, "max_size": max_side}
    nothing = {"weights": None, "weights_backbone": None}
    if name in ("r50_fpn", "resnet50"):  # of the latter the backbone alone is run
        model = detection.maskrcnn_resnet50_fpn(**nothing, **sides)
    elif name == "keypoint_r50_fpn":
        model = detection.keypointrcnn_resnet50_fpn(**nothing, **sides)
    elif name == "r50_c4":
        model = c4(**sides)
    else:
        kind = {"r101_fpn": "resnet101", "x101_fpn": "resnext101_32x8d"}[name]
        backbone = resnet_fpn_backbone(backbone_name=kind, weights=None)
        model = detection.MaskRCNN(backbone, 91, **sides)
    return model.eval()


class Res5(torch.nn.Module):
    """A ResNet's last stage on pooled regions; for boxes its mean."""

    def __init__(self, stage: torch.nn.Module, mean: bool) -> None:
        super().__init__()
        self.stage, self.mean = stage, mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stage(x)
        return y.mean((2, 3)) if self.mean else y


def c4(**sides: int) -> torch.nn.Module:
    """Mask R-CNN on ResNet-50's fourth stage (He et al. 2017, Figure 4 left); 300 proposals, as there, 100 detections."""
    resnet = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    children = [
        resnet.conv1,
        resnet.bn1,
        resnet.relu,
        resnet.maxpool,
        resnet.layer1,
        resnet.layer2,
        resnet.layer3,
    ]
    backbone = torch.nn.Sequential(*children)
    backbone.out_channels = 1024
    pooler = partial(MultiScaleRoIAlign, ["0"], 14, 2)
    return detection.MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_test=6000,
        rpn_post_nms_top_n_test=300,
        box_roi_pool=pooler(),
        box_head=Res5(resnet.layer4, mean=True),
        box_predictor=FastRCNNPredictor(2048, 91),
        box_score_thresh=0.0,
        mask_roi_pool=pooler(),
        mask_head=Res5(resnet.layer4, mean=False),
        mask_predictor=MaskRCNNPredictor(2048, 256, 91),
        **sides,
    )


def write_weights(name: str, path: Path, rule: Path) -> None:
    """Weights by a rule (a module with `fill(name, shape, input_scale)`) under which a random network finds things."""
    spec = importlib.util.spec_from_file_location("rule", rule)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = build(name, 800, 1333).state_dict()
    filled = {
        key: torch.from_numpy(np.array(module.fill(key, tuple(v.shape), 1.0))) for key, v in state.items()
    }
    torch.save(filled, path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--model", choices=MODELS, default="r50_fpn")
    parser.add_argument("--write-weights", type=Path, help="write weights here by --rule, and end")
    parser.add_argument("--rule", type=Path)
    parser.add_argument("--inputs", type=Path, help=".npz of images, uint8 [H, W, 3]")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--max-side", type=int, default=1333)
    parser.add_argument("--outputs", help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.write_weights:
        write_weights(args.model, args.write_weights, args.rule)
        return
    torch.manual_seed(0)
    model = build(args.model, args.short_side, args.max_side)
    if args.weights:
        model.load_state_dict(torch.load(args.weights, weights_only=True))
    if args.setting != "plain":
        model = model.to(memory_format=torch.channels_last)
    inputs = np.load(args.inputs)
    images = [inputs[name] for name in sorted(inputs.files)][: args.batch]

    def objects() -> list[dict[str, torch.Tensor]]:
        """From uint8 pixels to binary masks of the image's size."""
        tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
        with precision():
            results = model(tensors)
            for result in results if "masks" in results[0] else ():
                result["masks"] = result["masks"][:, 0] >= 0.5
        return results

    @contextmanager
    def precision() -> Iterator[None]:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.setting == "bfloat16")
        with torch.inference_mode(), autocast:
            yield

    numbers = np.random.default_rng(0).standard_normal((args.batch, *BODY, 3), np.float32)
    picture = torch.from_numpy(numbers).permute(0, 3, 1, 2)
    picture = picture if args.setting != "plain" else picture.contiguous()

    def maps() -> list[torch.Tensor]:
        with precision():
            return list(model.backbone.body(picture).values())

    def check() -> None:
        if args.model == "resnet50":
            np.savez(args.outputs, *(level.float().permute(0, 2, 3, 1).numpy() for level in maps()))
            return
        scores = [result["scores"].float().numpy() for result in objects()]
        np.savez(args.outputs, scores=np.concatenate(scores), counts=np.array([len(s) for s in scores]))

    left, right = torch.randn(args.matrix, args.matrix), torch.randn(args.matrix, args.matrix)
    serve({
        "version": lambda: f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}",
        "check": check,
        "run": lambda: maps() and None if args.model == "resnet50" else sum(len(r["scores"]) for r in objects()),
        "matmul": lambda: (left @ right) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
