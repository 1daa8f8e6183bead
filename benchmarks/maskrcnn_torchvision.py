"""torchvision's Mask R-CNN R50-FPN as a worker of maskrcnn.py; runs in an environment of its own."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torchvision
from torchvision.models import detection
from worker import serve

SETTINGS = ("plain", "channels_last")


def build(short_side: int, max_side: int) -> torch.nn.Module:
    return detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=short_side, max_size=max_side
    ).eval()


def write_weights(path: Path, rule: Path) -> None:
    """Weights by a rule (a module with `fill(name, shape, input_scale)`) under which a random network finds things."""
    spec = importlib.util.spec_from_file_location("rule", rule)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state = build(800, 1333).state_dict()
    torch.save(
        {
            name: torch.from_numpy(np.array(module.fill(name, tuple(v.shape), 1.0)))
            for name, v in state.items()
        },
        path,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("setting", choices=SETTINGS)
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
        write_weights(args.write_weights, args.rule)
        return
    model = build(args.short_side, args.max_side)
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    if args.setting == "channels_last":
        model = model.to(memory_format=torch.channels_last)
    inputs = np.load(args.inputs)
    images = [inputs[name] for name in sorted(inputs.files)][: args.batch]

    def predict() -> list[dict[str, torch.Tensor]]:
        """From uint8 pixels to binary masks of the image's size."""
        with torch.inference_mode():
            tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images]
            results = model(tensors)
            for result in results:
                result["masks"] = result["masks"][:, 0] >= 0.5
        return results

    def check() -> None:
        scores = [result["scores"].numpy() for result in predict()]
        np.savez(args.outputs, scores=np.concatenate(scores), counts=np.array([len(s) for s in scores]))

    left, right = torch.randn(args.matrix, args.matrix), torch.randn(args.matrix, args.matrix)
    serve({
        "version": lambda: f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}",
        "check": check,
        "run": lambda: predict() is None,
        "matmul": lambda: (left @ right) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
