"""torchvision's Mask R-CNN as a worker of train_step.py; runs in an environment of its own."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import MaskRCNN, _utils
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d
from worker import serve

SETTINGS = ("plain", "channels_last")


def build(backbone: str) -> nn.Module:
    """resnet50: as published models are fine-tuned, 91 classes, stem and first stage frozen, normalisation too;
    resnet18: from scratch, 2 classes, a pyramid of 64 channels, batch normalisation."""
    large = backbone == "resnet50"
    body = resnet50(weights=None, norm_layer=FrozenBatchNorm2d) if large else resnet18(weights=None)
    if large:
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    layers = {f"layer{k}": str(k - 1) for k in range(1, 5)}
    channels = [(256 if large else 64) * 2**k for k in range(4)]
    features = BackboneWithFPN(body, layers, channels, 256 if large else 64, extra_blocks=LastLevelMaxPool())
    return MaskRCNN(features, 91 if large else 2, min_size=800 if large else 256, max_size=1333).train()


def take_first(labels: list[torch.Tensor], count: int, fraction: float) -> tuple[list, list]:
    """What BalancedPositiveNegativeSampler does, with the first ones instead of random ones."""
    chosen = [], []
    for image in labels:
        positive, negative = torch.where(image >= 1)[0], torch.where(image == 0)[0]
        positive = positive[: int(count * fraction)]
        for masks, places in zip(chosen, (positive, negative[: count - len(positive)]), strict=True):
            masks.append(torch.zeros_like(image, dtype=torch.uint8).index_fill_(0, places, 1))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--backbone", choices=("resnet50", "resnet18"), required=True)
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--write-weights", type=Path, help="write weights by this rule, and end")
    parser.add_argument("--outputs", help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build(args.backbone)
    if args.write_weights:
        spec = importlib.util.spec_from_file_location("rule", args.write_weights)
        rule = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(rule)
        state = {
            name: torch.from_numpy(np.array(rule.fill(name, tuple(value.shape), 1.0)))
            for name, value in model.state_dict().items()
        }
        torch.save(state, args.weights)
        return
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    _utils.BalancedPositiveNegativeSampler.__call__ = lambda self, labels: take_first(
        labels, self.batch_size_per_image, self.positive_fraction
    )
    if args.setting == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    arrays = np.load(args.inputs)
    images = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in arrays["images"]]
    targets = [
        {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels).long(),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
        }
        for boxes, labels, masks in zip(arrays["boxes"], arrays["labels"], arrays["masks"], strict=True)
    ]
    # so small a rate that the work stays the same from step to step
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-8, momentum=0.9)

    def step() -> dict[str, torch.Tensor]:
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    def check() -> None:
        losses = {name: loss.item() for name, loss in step().items()}
        names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        norm = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))
        np.savez(args.outputs, losses=np.array([losses[n] for n in names]), norm=np.array([float(norm)]))

    left, right = torch.randn(args.matrix, args.matrix), torch.randn(args.matrix, args.matrix)
    serve({
        "version": lambda: f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}",
        "check": check,
        "run": lambda: step() is None,
        "matmul": lambda: (left @ right) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
