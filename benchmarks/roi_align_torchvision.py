"""torchvision's RoIAlign as a worker of roi_align.py; runs in an environment of its own."""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torchvision
from worker import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["forward", "backward"])
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--ratio", type=int, required=True)
    parser.add_argument("--outputs", required=True, help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = np.load(args.inputs)
    features, upstream = (
        torch.from_numpy(inputs[name]).permute(0, 3, 1, 2).contiguous() for name in ("features", "upstream")
    )
    boxes, scale = torch.from_numpy(inputs["boxes"]), float(inputs["scale"])

    def forward() -> torch.Tensor:
        ratio = args.ratio or -1
        return torchvision.ops.roi_align(features, [boxes], upstream.shape[2], scale, ratio, aligned=True)

    result = None
    if args.task == "backward":
        features.requires_grad_()
        result = forward()

    def run() -> torch.Tensor:
        if args.task == "backward":
            return torch.autograd.grad(result, features, upstream, retain_graph=True)[0]
        with torch.inference_mode():
            return forward()

    def check() -> None:
        np.savez(args.outputs, values=run().permute(0, 2, 3, 1).numpy()[:, ::3, ::3])

    matrix = torch.randn(args.matrix, args.matrix)
    serve(
        {
            "check": check,
            "run": lambda: run() is None,
            "matmul": lambda: float((matrix @ matrix)[0, 0]),
            "version": lambda: f"torchvision {torchvision.__version__} on PyTorch {torch.__version__}",
        }
    )


if __name__ == "__main__":
    main()
