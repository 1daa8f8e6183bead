"""keras_seg's Mask R-CNN R50-FPN against torchvision's and Model Garden's, in one run: `make bench-maskrcnn`.

keras_seg and torchvision have the same weights and give the same detections; from pixels to pasted masks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import compare
import numpy as np
from compare import HERE, OURS
from PIL import Image
from unet import TORCH_ENVIRONMENT, TORCH_REQUIREMENTS

GARDEN_ENVIRONMENT, GARDEN_REQUIREMENTS = ".venv-garden", ("tensorflow==2.20.0", "tf-models-official==2.20.0")
TORCHVISION = {"torchvision": "plain", "torchvision, channels_last": "channels_last"}
GARDEN = "Model Garden"
SHARED = HERE.parent.parent / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--without-parts", action="store_true", help="leave out the time by part")
    parser.add_argument("--only", nargs="*", help="leave out other contestants than these")
    parser.add_argument("--images", type=Path, default=SHARED / "data/coco_people/val2017")
    parser.add_argument(
        "--rule", type=Path, default=SHARED / "golden/weights.py", help="module that fills the weights"
    )
    parser.add_argument("--weights", type=Path, help="a published .pth instead, and its own detections")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of maskrcnn.json and maskrcnn.md"
    )
    args = parser.parse_args()
    names = [n for n in (*TORCHVISION, GARDEN) if args.only is None or n in args.only]
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    garden_python = compare.environment(GARDEN_ENVIRONMENT, GARDEN_REQUIREMENTS) if GARDEN in names else None

    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        inputs, weights = Path(folder) / "inputs.npz", args.weights or Path(folder) / "weights.pth"
        images = write_images(inputs, args.images, max(args.batches))
        if not args.weights:
            line = [torch_python, HERE / "maskrcnn_torchvision.py", "plain", "--write-weights", weights]
            subprocess.run([*line, "--rule", args.rule], check=True)
        for batch in args.batches:
            options = ["--inputs", inputs, "--batch", batch, "--threads", args.threads]
            options += ["--short-side", args.short_side]
            ours = [sys.executable, HERE / "maskrcnn_keras_seg.py", *options, "--weights", weights]
            commands = {OURS: ours}
            for name in names:
                program = [torch_python, HERE / "maskrcnn_torchvision.py", TORCHVISION.get(name)]
                commands[name] = (
                    [garden_python, HERE / "maskrcnn_garden.py", *options]
                    if name == GARDEN
                    else [*program, *options, "--weights", weights]
                )
            flops = [part_flops(image.shape, args.short_side) for image in images[:batch]]
            flops = {part: sum(image[part] for image in flops) for part in flops[0]}
            table = compare.compare(
                f"batch {batch}",
                commands,
                args.rounds,
                sum(flops.values()),
                Path(folder),
                unchecked=[GARDEN],
                parts=not args.without_parts,
            )
            results["tables"][str(batch)] = table | {"part_flops": flops}
    compare.write(results, report(results, args.short_side), args.output, "maskrcnn")


def write_images(path: Path, folder: Path, count: int) -> list[np.ndarray]:
    """The first `count` photographs of a folder, uint8 RGB, for all contestants."""
    files = sorted(folder.glob("*.jpg"))[:count]
    if len(files) < count:
        raise FileNotFoundError(f"{folder}: {len(files)} photographs (.jpg), the benchmark needs {count}")
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    np.savez(path, **{f"{place:03d}": image for place, image in enumerate(images)})
    return images


def part_flops(
    shape: tuple[int, ...], short_side: int, proposals: int = 1000, masks: int = 100
) -> dict[str, float]:
    """Multiplications and additions of R50-FPN's convolutions and dense layers for one image, by part."""
    scale = short_side / min(shape[:2])
    height, width = (-(-int(side * scale) // 32) * 32 for side in shape[:2])

    def convolution(stride: int, kernel: int, incoming: int, outgoing: int) -> float:
        # torchvision's level of stride 64 is the one of stride 32 subsampled, which rounds up
        return 2 * kernel**2 * incoming * outgoing * -(-height // stride) * -(-width // stride)

    backbone = convolution(2, 7, 3, 64)
    incoming = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        stride, inner = 4 * 2**stage, 64 * 2**stage
        backbone += convolution(stride, 1, incoming, 4 * inner)  # the shortcut
        for block in range(blocks):
            # torchvision strides in the 3x3 convolution, so a stage's first 1x1 is at the size before
            before = stride if block or not stage else stride // 2
            backbone += convolution(before, 1, incoming if not block else 4 * inner, inner)
            backbone += convolution(stride, 3, inner, inner) + convolution(stride, 1, inner, 4 * inner)
        incoming = 4 * inner
        backbone += convolution(stride, 1, incoming, 256) + convolution(stride, 3, 256, 256)  # the pyramid
    return {
        "backbone": backbone,
        "RPN": sum(
            convolution(stride, 3, 256, 256) + convolution(stride, 1, 256, 15)
            for stride in (4, 8, 16, 32, 64)
        ),
        "box": 2 * proposals * (256 * 49 * 1024 + 1024 * 1024 + 1024 * 91 * 5),
        "mask": 2 * masks * (4 * 9 * 256 * 256 * 196 + 256 * 256 * 784 + 256 * 91 * 784),
    }


def report(results: dict, short_side: int) -> str:
    """The tables as Markdown, in seconds an image."""
    lines = [compare.machine_line(results)]
    for batch, table in results["tables"].items():
        title = (
            f"Mask R-CNN R50-FPN, shorter side {short_side}, batch {batch}: {table['flops'] / int(batch) / 1e9:.0f} "
            f"GFLOP an image; matrix peak {table['peak_flops'] / 1e9:.0f} GFLOP/s."
        )
        lines += ["", title, "", *compare.table_lines(table, "seconds an image", int(batch))]
        parts = table["contestants"][OURS].get("parts", {})
        lines += (
            ["", f"| {OURS} by part | seconds an image | GFLOP an image | share of the peak |"]
            if parts
            else []
        )
        lines += ["|---|---|---|---|"] if parts else []
        for name, seconds in parts.items():
            flops = table["part_flops"].get(name, 0)
            share = f"{flops / seconds / table['peak_flops']:.0%}" if flops else ""
            lines.append(
                f"| {name} | {seconds / int(batch):.2f} | {flops / int(batch) / 1e9:.1f} | {share} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
