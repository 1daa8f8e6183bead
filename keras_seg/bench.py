"""Speed and memory of one model on this machine: `keras-seg bench`. Comparisons with other libraries are in
benchmarks/.

Each batch size has a process of its own, so that its memory and its cold start are not those of the one before.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["bench", "drawn_image", "measure", "table"]

BUSY = 0.25  # of the processor's cores at work before we begin
SIDE = 512  # of the drawn image, for models without a size of their own


def bench(
    name: str | Path,
    weights: str | Path | None = "pretrained",
    *,
    image: str | Path | None = None,
    size: tuple[int, int] | None = None,
    batch_sizes: Sequence[int] = (1,),
    rounds: int = 10,
    warmup: int = 2,
    precision: str = "float32",
) -> dict[str, Any]:
    """Measures a model of the zoo, or of a recipe's file, from pixels in memory to class probabilities, or to
    objects with their masks pasted.

    Args:
        weights: as of `zoo.load`. With None the numbers are those of random weights, which find other objects.
        image: a file to segment; None: a drawn one of `size`, height and width in pixels. None: the model's own
            size, that is its shorter side by 4/3 of it for a detector, 512 by 512 for one that only scales and for a
            U-Net. How many objects a detector finds matters to its speed, so that an image of what it knows tells
            more.
        batch_sizes: images at once: of the same image.
        rounds: how often it is measured, after one first time and `warmup` more.
        precision: as of `segment`.

    Returns plain values. Of each of "batches": "images_per_second" (of the median), "seconds" a batch ("median",
    "least", "most", "all"), "first_result" (seconds from the start of the process: "import", "load", "predict",
    "total"), "objects" found in an image, "peak_memory" and "peak_gpu_memory" in bytes (None where the system does not say).

    Raises ValueError for wrong numbers, what `zoo.load` and `segment` raise; ChildProcessError if a process ends in
    another way.
    """
    from keras_seg import zoo
    from keras_seg.doctor import examine

    for what, values, least in (
        ("batch_sizes", batch_sizes, 1),
        ("rounds", [rounds], 1),
        ("warmup", [warmup], 0),
    ):
        if not len(values) or min(values) < least:
            raise ValueError(f"bench: {what} must be {least} or more, got {values}")
    if image is not None and size is not None:
        raise ValueError("bench: an image has its own size; give one of the two")
    if image is not None and not Path(image).is_file():
        raise FileNotFoundError(f"{image}: no such image")
    recipe = zoo.show(name)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    request = {
        "name": str(name), "weights": None if weights is None else str(weights), "image": image and str(image),
        "size": size, "rounds": rounds, "warmup": warmup, "precision": precision,
    }  # fmt: skip
    batches = [_in_own_process({**request, "batch_size": batch_size}) for batch_size in batch_sizes]
    found = examine()
    machine = {
        key: found[key]
        for key in ("keras_seg", "tensorflow", "keras", "python", "platform", "devices", "cpu")
    }
    roi_align = "compiled" if found["roi_align"]["used"] else "TensorFlow's own operations"
    return {
        "model": recipe.name,
        "precision": precision,
        "image": {"source": str(image) if image else "drawn", **batches[0].pop("image")},
        "warmup": warmup,
        "rounds": rounds,
        "machine": {**machine, "roi_align": roi_align, "load_before": load},
        "batches": [{key: value for key, value in one.items() if key != "image"} for one in batches],
    }


def measure(
    model: Any,
    image: np.ndarray,
    *,
    batch_size: int = 1,
    rounds: int = 10,
    warmup: int = 2,
    precision: str = "float32",
) -> dict[str, Any]:
    """How long a model takes for a batch of the same image, in this process: {"first": seconds of the first time,
    "seconds": those of `rounds` later ones, "objects": what a detector found in the image, else None}.

    image: [H, W, C] as `segment` takes it.
    """
    import keras_seg

    if hasattr(model, "short_side"):
        images: Any = [image] * batch_size
    else:
        images = np.stack([image] * batch_size)
    objects, seconds = None, []
    for _ in range(1 + warmup + rounds):
        start = time.perf_counter()
        found = keras_seg.segment(model, images, batch_size=batch_size, precision=precision)
        if isinstance(found, list):
            objects = len(found[0])
            for one in found:
                if one.mask_probabilities is not None:
                    one.to_labels()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": seconds[1 + warmup :], "objects": objects}


def table(report: dict[str, Any]) -> str:
    """What `bench` returns, for people."""
    machine, image = report["machine"], report["image"]
    cpu, load = machine["cpu"], machine["load_before"]
    heading = f"{report['model']}, {report['precision']}, {image['height']}x{image['width']} pixels"
    lines = [
        f"{heading} ({image['source']})",
        f"{cpu['model']}, {cpu['cores']} cores; {', '.join(machine['devices'])}",
        f"TensorFlow {machine['tensorflow']}; RoIAlign: {machine['roi_align']}",
        f"median of {report['rounds']} (least-most) after {report['warmup'] + 1} to warm up; first result: from start",
        "",
    ]
    rows = [("batch", "images/s", "s a batch", "objects", "first result", "peak memory")]
    for one in report["batches"]:
        seconds, first = one["seconds"], one["first_result"]
        memory = [value for value in (one["peak_memory"], one["peak_gpu_memory"]) if value is not None]
        rows.append((
            str(one["batch_size"]),
            f"{one['images_per_second']:.3g}",
            f"{seconds['median']:.3g} ({seconds['least']:.3g}-{seconds['most']:.3g})",
            "-" if one["objects"] is None else str(one["objects"]),
            f"{first['total']:.1f} s",
            " + GPU ".join(f"{value / 1e9:.2f} GB" for value in memory) or "unknown",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if load is not None and load > BUSY * cpu["cores"]:
        lines += [
            "",
            f"note: the machine was busy before (load average {load:.1f}), so it can be faster than this",
        ]
    return "\n".join(lines)


def drawn_image(height: int, width: int, channels: int) -> np.ndarray:
    """Bright discs of several sizes on a dark ground with noise: uint8 [H, W, C]."""
    random = np.random.default_rng(0)
    picture = random.normal(20, 4, (height, width)).astype(np.float32)
    rows, columns = np.ogrid[:height, :width]
    for y, x, radius in random.uniform([0, 0, 6], [height, width, 24], (height * width // 4096 + 1, 3)):
        picture[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += 120
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], channels, axis=-1)


def _in_own_process(request: dict[str, Any]) -> dict[str, Any]:
    request = {**request, "started": time.monotonic()}
    command = [sys.executable, "-m", "keras_seg.bench"]
    ended = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    answer = ended.stdout.strip().rpartition("\n")[2]
    if ended.returncode == 0 and answer:
        return json.loads(answer)
    reason = ended.stderr.strip().rpartition("\n")[2]
    if ended.returncode == 2:
        raise ValueError(reason)
    killed = (
        f"killed by signal {-ended.returncode}, for want of memory perhaps"
        if ended.returncode < 0
        else reason
    )
    raise ChildProcessError(f"bench: batch size {request['batch_size']}: {killed}")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """What one process measures."""
    import tensorflow as tf

    from keras_seg import zoo
    from keras_seg.data.images import read_image

    imported = time.monotonic()
    model = zoo.load(request["name"], request["weights"])
    loaded = time.monotonic()
    if request["image"]:
        image = read_image(request["image"])
    else:
        height, width = request["size"] or _own_size(model)
        image = drawn_image(height, width, getattr(model, "input_channels", 3))
    options = {key: request[key] for key in ("batch_size", "rounds", "warmup", "precision")}
    measured = measure(model, image, **options)
    seconds = measured["seconds"]
    median = statistics.median(seconds)
    # what comes before the imports is the start of Python and of this package
    parts = {"import": imported - request["started"], "load": loaded - imported, "predict": measured["first"]}
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "batch_size": request["batch_size"],
        "images_per_second": request["batch_size"] / median,
        "seconds": {"median": median, "least": min(seconds), "most": max(seconds), "all": seconds},
        "first_result": {**parts, "total": sum(parts.values())},
        "objects": measured["objects"],
        "peak_memory": _peak_memory(),
        "peak_gpu_memory": tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None,
        "image": {"height": image.shape[0], "width": image.shape[1]},
    }


def _own_size(model: Any) -> tuple[int, int]:
    if getattr(model, "scale", None) is not None or not hasattr(model, "short_side"):
        return SIDE, SIDE
    return model.short_side, min(round(model.short_side * 4 / 3), model.max_side)


def _peak_memory() -> int | None:
    """Bytes of memory that this process had at most at a time."""
    try:
        # not getrusage, whose figure begins with that of the process which started this one
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _main() -> None:
    try:
        answer = _answer(json.loads(sys.stdin.read()))
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    print(json.dumps(answer))


if __name__ == "__main__":
    _main()
