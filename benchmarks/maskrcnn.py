"""keras_seg's detectors against torchvision's and Model Garden's, in one run: `make bench-maskrcnn`.

keras_seg and torchvision have the same weights and give the same detections in float32 (but for R50-C4, which has no
importer); from pixels to pasted masks.
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
OURS_BFLOAT16 = f"{OURS}, bfloat16"
# what came before: the functional model itself, and it without the compiled RoIAlign
STEPS = {
    f"{OURS}, functional model": ["--functional"],
    f"{OURS}, portable RoIAlign too": ["--functional", "--portable"],
}
TORCHVISION = {
    "torchvision": "plain",
    "torchvision, channels_last": "channels_last",
    "torchvision, channels_last, bfloat16 autocast": "bfloat16",
}
GARDEN = "Model Garden"
MODELS = {
    "r50_fpn": "Mask R-CNN R50-FPN",
    "r101_fpn": "Mask R-CNN R101-FPN",
    "x101_fpn": "Mask R-CNN X101-FPN (32x8d)",
    "r50_c4": "Mask R-CNN R50-C4",
    "keypoint_r50_fpn": "Keypoint R-CNN R50-FPN",
    "resnet50": "ResNet-50's four stages alone",
}
BODY = 800, 1088  # the image that "resnet50" takes
IN_GARDEN = ("r50_fpn", "r101_fpn")
BLOCKS = {"r101_fpn": (3, 4, 23, 3), "x101_fpn": (3, 4, 23, 3)}
PROPOSALS = {"r50_c4": 300}  # as in the paper
GROUPS, GROUPED_WIDTH = 32, 256  # of X101's first stage
SHARED = HERE.parent.parent / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--batches",
        type=int,
        nargs="*",
        default=[1, 4],
        help="of R50-FPN; the others run with the first alone",
    )
    parser.add_argument("--short-side", type=int, default=800)
    parser.add_argument("--without-parts", action="store_true", help="leave out the time by part")
    parser.add_argument("--only", nargs="*", help="leave out other contestants than these")
    parser.add_argument("--images", type=Path, default=SHARED / "data/coco_people/val2017")
    parser.add_argument(
        "--rule", type=Path, default=SHARED / "golden/weights.py", help="module that fills the weights"
    )
    parser.add_argument("--weights", type=Path, help="a published .pth of R50-FPN instead")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of maskrcnn.json and maskrcnn.md"
    )
    args = parser.parse_args()
    names = [*STEPS, OURS_BFLOAT16, *TORCHVISION, GARDEN]
    if not compare.has_bfloat16():
        compare.say("this processor does not multiply bfloat16: those contestants are left out")
        names = [name for name in names if "bfloat16" not in name]
    names = [name for name in names if args.only is None or name in args.only]
    torch_python = compare.environment(TORCH_ENVIRONMENT, TORCH_REQUIREMENTS)
    garden_python = compare.environment(GARDEN_ENVIRONMENT, GARDEN_REQUIREMENTS) if GARDEN in names else None

    results = {"date": date.today().isoformat(), "machine": compare.machine(args.threads)}
    results |= {"bytes_per_second": compare.bandwidth(), "tables": {}}
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        images = write_images(inputs, args.images, max(args.batches))
        for model in args.models:
            weights = args.weights if args.weights and model == "r50_fpn" else Path(folder) / "weights.pth"
            if not args.weights and model != "r50_c4":
                line = [torch_python, HERE / "maskrcnn_torchvision.py", "plain", "--model", model]
                subprocess.run([*line, "--write-weights", weights, "--rule", args.rule], check=True)
            for batch in args.batches if model == "r50_fpn" else args.batches[:1]:
                options = ["--model", model, "--inputs", inputs, "--batch", batch, "--threads", args.threads]
                options += ["--short-side", args.short_side]
                shared = options if model == "r50_c4" else [*options, "--weights", weights]
                ours = [sys.executable, HERE / "maskrcnn_keras_seg.py", *shared]
                commands = {OURS: ours}
                for name in names:
                    if name == GARDEN and model in IN_GARDEN:
                        commands[name] = [garden_python, HERE / "maskrcnn_garden.py", *options]
                    elif name in STEPS and (model, batch) == ("r50_fpn", 1):
                        commands[name] = [*ours, *STEPS[name]]
                    elif name == OURS_BFLOAT16:
                        commands[name] = [*ours, "--precision", "bfloat16"]
                    elif name in TORCHVISION:
                        program = [torch_python, HERE / "maskrcnn_torchvision.py", TORCHVISION[name]]
                        commands[name] = [*program, *shared]
                body = model == "resnet50"
                shapes = [BODY] * batch if body else [image.shape for image in images[:batch]]
                side, proposals = min(BODY) if body else args.short_side, PROPOSALS.get(model, 1000)
                costs = [part_costs(shape, side, proposals, model=model) for shape in shapes]
                costs = {
                    part: sum(image[part] for image in costs).astype(float).tolist() for part in costs[0]
                }
                table = compare.compare(
                    f"{MODELS[model]}, batch {batch}",
                    commands,
                    args.rounds,
                    sum(flops for flops, _ in costs.values()),
                    Path(folder),
                    unchecked=[n for n in commands if model == "r50_c4" or n == GARDEN or "bfloat16" in n],
                    parts=model == "r50_fpn" and not args.without_parts,
                )
                table |= {"model": model, "batch": batch, "part_costs": costs}
                results["tables"][f"{model}, {batch}"] = table
                # after each: a long run that is stopped has not been for nothing
                compare.write(results, report(results, args.short_side), args.output, "maskrcnn", show=False)
    print(report(results, args.short_side))


def write_images(path: Path, folder: Path, count: int) -> list[np.ndarray]:
    """The first `count` photographs of a folder, uint8 RGB, for all contestants."""
    files = sorted(folder.glob("*.jpg"))[:count]
    if len(files) < count:
        raise FileNotFoundError(f"{folder}: {len(files)} photographs (.jpg), the benchmark needs {count}")
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    np.savez(path, **{f"{place:03d}": image for place, image in enumerate(images)})
    return images


def part_costs(
    shape: tuple[int, ...], short_side: int, proposals: int = 1000, masks: int = 100, model: str = "r50_fpn"
) -> dict[str, np.ndarray]:
    """(FLOPs, bytes) of a model's convolutions and dense layers for one image, by part.

    FLOPs are multiplications and additions. Bytes are what each layer reads and writes in float32: its input, its kernel and its
    output, once each.
    """
    scale = short_side / min(shape[:2])
    height, width = (-(-int(side * scale) // 32) * 32 for side in shape[:2])

    def layer(pixels: float, kernel: int, incoming: int, outgoing: int) -> np.ndarray:
        products = kernel**2 * incoming * outgoing
        return np.array([2 * pixels * products, 4 * (pixels * (incoming + outgoing) + products)])

    def convolution(stride: int, kernel: int, incoming: int, outgoing: int) -> np.ndarray:
        # torchvision's level of stride 64 is the one of stride 32 subsampled, which rounds up
        return layer(-(-height // stride) * -(-width // stride), kernel, incoming, outgoing)

    c4, grouped = model == "r50_c4", model == "x101_fpn"
    if c4:  # not padded
        height, width = (int(side * scale) for side in shape[:2])

    def inside(stage: int, block: int) -> list[tuple[int, int, int, int]]:
        """(stride, kernel, incoming, outgoing) of the convolutions of a block; a group's as many as there are groups."""
        stride, outgoing = 4 * 2**stage, 256 * 2**stage
        inner = (GROUPED_WIDTH if grouped else 64) * 2**stage
        incoming = outgoing if block else (outgoing // 2 if stage else 64)
        # torchvision strides in the 3x3 convolution, so a stage's first 1x1 is at the size before
        before = stride if block or not stage else stride // 2
        group = inner // GROUPS if grouped else inner
        shortcut = [] if block else [(stride, 1, incoming, outgoing)]
        return [
            (before, 1, incoming, inner),
            (stride, 3, group, inner),
            (stride, 1, inner, outgoing),
            *shortcut,
        ]

    stages = enumerate(BLOCKS.get(model, (3, 4, 6, 3))[: 3 if c4 else 4])
    blocks = [inside(stage, block) for stage, count in stages for block in range(count)]
    backbone = convolution(2, 7, 3, 64) + sum(convolution(*one) for block in blocks for one in block)
    if c4:
        # res5 on regions of 14x14 pixels, 7x7 after its first stride
        pixels = [14**2, *(49,) * 9]
        layers = [one for block in range(3) for one in inside(3, block)]

        def res5(regions: int) -> np.ndarray:
            return sum(layer(regions * n, *one[1:]) for n, one in zip(pixels, layers, strict=True))

        return {
            "backbone": backbone,
            "RPN": convolution(16, 3, 1024, 1024) + convolution(16, 1, 1024, 75),
            "box": res5(proposals) + layer(proposals, 1, 2048, 91 * 5),
            # of a transposed convolution with stride 2, each output pixel is one product
            "mask": res5(masks) + layer(masks * 196, 1, 2048, 256) + layer(masks * 196, 1, 256, 91),
        }
    if model == "resnet50":
        return {"backbone": backbone}
    for stage in range(4):  # the pyramid
        stride = 4 * 2**stage
        backbone += convolution(stride, 1, 256 * 2**stage, 256) + convolution(stride, 3, 256, 256)
    classes = 2 if model == "keypoint_r50_fpn" else 91
    if model == "keypoint_r50_fpn":
        # eight convolutions, and a 4x4 transposed one of stride 2
        head = layer(masks * 196, 3, 256, 512) + 7 * layer(masks * 196, 3, 512, 512)
        head += layer(masks * 196, 4, 512, 17)
    else:
        head = 4 * layer(masks * 196, 3, 256, 256)
        head += layer(masks * 784, 1, 256, 256) + layer(masks * 784, 1, 256, 91)
    return {
        "backbone": backbone,
        "RPN": sum(
            convolution(stride, 3, 256, 256) + convolution(stride, 1, 256, 15)
            for stride in (4, 8, 16, 32, 64)
        ),
        "box": layer(proposals, 1, 256 * 49, 1024)
        + layer(proposals, 1, 1024, 1024)
        + layer(proposals, 1, 1024, classes * 5),
        "mask": head,
    }


def report(results: dict, short_side: int) -> str:
    """The tables as Markdown, in seconds an image."""
    lines = [
        compare.machine_line(results),
        f"Memory: {results['bytes_per_second'] / 1e9:.1f} GB/s (a copy, one thread).",
    ]
    for name, table in results["tables"].items():
        batch, model = table.get("batch", name), table.get("model", "r50_fpn")
        side = "{}x{}".format(*BODY) if model == "resnet50" else f"shorter side {short_side}"
        title = (
            f"{MODELS[model]}, {side}, batch {batch}: {table['flops'] / int(batch) / 1e9:.0f} "
            f"GFLOP an image; matrix peak {table['peak_flops'] / 1e9:.0f} GFLOP/s."
        )
        lines += ["", title, "", *compare.table_lines(table, "seconds an image", int(batch))]
        found = {name: row["result"] for name, row in table["contestants"].items() if row["result"]}
        if found:
            lines += [
                "",
                "Detections: " + ", ".join(f"{name} {count}" for name, count in found.items()) + ".",
            ]
        if parts := table["contestants"][OURS].get("parts"):
            lines += ["", *part_lines(parts, table, results["bytes_per_second"])]
    return "\n".join([*lines, ""])


def part_lines(parts: dict[str, float], table: dict, memory_speed: float) -> list[str]:
    """Seconds by part, and those that arithmetic or memory would take alone, whichever is slower."""
    batch, peak = int(table.get("batch", 1)), table["peak_flops"]
    lines = [
        f"| {OURS} by part | seconds an image | GFLOP | MB | seconds at the limit of direct convolutions |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in parts.items():
        flops, moved = table["part_costs"].get(name, (0, 0))
        limit = max(flops / peak, moved / memory_speed)
        costs = (
            f"{flops / batch / 1e9:.1f} | {moved / batch / 1e6:.0f} | {limit / batch:.2f}"
            if flops
            else " | |"
        )
        lines.append(f"| {name} | {seconds / batch:.2f} | {costs} |")
    return lines


if __name__ == "__main__":
    main()
