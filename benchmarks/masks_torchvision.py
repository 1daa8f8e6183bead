"""torchvision's pasting and pycocotools' encoding as a worker of masks.py; runs in an environment of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torchvision
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image
from worker import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True, help=".npz of masks, boxes and size")
    parser.add_argument("--outputs", required=True, help=".npz to write what is compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--matrix", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = np.load(args.inputs)
    masks, boxes = torch.from_numpy(inputs["masks"])[:, None], torch.from_numpy(inputs["boxes"])
    size = tuple(inputs["size"].tolist())

    def encode() -> list[dict]:
        with torch.inference_mode():
            pasted = (paste_masks_in_image(masks, boxes, size)[:, 0] >= 0.5).numpy()
        return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in pasted]

    def check() -> None:
        decoded = [coco.decode(rle) for rle in encode()]
        np.savez(
            args.outputs,
            **{f"axis{axis}": np.stack([m.sum(axis) for m in decoded]).astype(float) for axis in (0, 1)},
        )

    left = torch.randn(args.matrix, args.matrix)
    serve({
        "version": lambda: f"torchvision {torchvision.__version__}, PyTorch {torch.__version__}, pycocotools",
        "check": check,
        "run": lambda: encode() is None,
        "matmul": lambda: (left @ left) is None,
    })  # fmt: skip


if __name__ == "__main__":
    main()
