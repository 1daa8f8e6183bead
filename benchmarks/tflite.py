"""TensorFlow Lite files of unet_isbi2012 and maskrcnn_nuclei in each precision: size, latency, agreement with the model, scores.

python benchmarks/tflite.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
import numpy as np
from compare import HERE
from worker import timed

MODES = (None, "float16", "dynamic", "int8")
SLICES = range(20, 25)  # of the ISBI stack
ISBI = ("pixel_error", "rand_error", "v_rand")
LEAST = 5  # images of a size in the validation part, from which it gets files of its own
SURE = 0.5  # least score of the detections that are compared one by one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data")
    parser.add_argument("--nuclei", default="maskrcnn_nuclei", help="a recipe of the zoo, or a file")
    parser.add_argument("--weights", default="pretrained", help="of it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of tflite.json and tflite.md"
    )
    args = parser.parse_args()
    import tensorflow as tf

    from keras_seg import zoo

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "unet_isbi2012": unet_table(zoo.load("unet_isbi2012"), args, Path(folder)),
            "maskrcnn_nuclei": detector_table(zoo.load(args.nuclei, args.weights), args, Path(folder)),
        }
    about = compare.machine(args.threads)
    results = {"date": date.today().isoformat(), "machine": about, "tables": tables}
    compare.write(results, report(results), args.output, "tflite")


def runner(path: Path, threads: int) -> Callable[..., dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path), num_threads=threads).get_signature_runner()


def saved(model: Any, folder: Path) -> tuple[Callable[..., Any], float]:
    """The SavedModel's function, and its megabytes."""
    import tensorflow as tf

    from keras_seg.export import saved_model

    path = saved_model(model, folder / f"{model.name}_saved", warmup_sizes=())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    call = lambda images, loaded=loaded: {
        k: v.numpy() for k, v in function(images=tf.constant(images)).items()
    }
    return call, size


def latencies(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            taken = timed(call)
            if turn:
                seconds[name].append(taken)
    return seconds


def exported(
    model: Any, mode: str | None, folder: Path, height: int, width: int, representative: Any
) -> Path:
    from keras_seg.export.tflite import tflite

    compare.say(f"{model.name}: {height} x {width}, {mode or 'float32'}")
    given = {"representative": representative} if mode == "int8" else {}
    path = folder / f"{model.name}_{height}_{width}_{mode}.tflite"
    return tflite(model, path, quantize=mode, height=height, width=width, **given)


def unet_table(model: Any, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from keras_seg import segment
    from keras_seg.data.images import read_stack
    from keras_seg.metrics import isbi

    data = args.data / "isbi2012"
    stack, labels = read_stack(data / "train-volume.tif"), read_stack(data / "train-labels.tif")
    height, width = stack.shape[1:]
    images = [stack[n][None, ..., None] for n in SLICES]
    truth, rows = labels[list(SLICES)], {}
    expected = np.concatenate([segment(model, image, rotations=1) for image in images])
    train = stack[: SLICES[0]]
    paths = {mode: exported(model, mode, folder, height, width, train) for mode in MODES}
    runs = {mode: runner(path, args.threads) for mode, path in paths.items()}
    rows["Keras"] = {"scores": isbi.evaluate(expected[..., -1], truth, ISBI)}
    for mode, run in runs.items():
        found = np.concatenate([run(images=image)["probabilities"] for image in images])
        difference = np.abs(found - expected)
        rows[mode or "float32"] = {
            "MB": paths[mode].stat().st_size / 1e6,
            "scores": isbi.evaluate(found[..., -1], truth, ISBI),
            "agreement": {
                "largest difference of a probability": float(difference.max()),
                "mean difference": float(difference.mean()),
            },
        }
    model.rotations = 1
    call, size = saved(model, folder)
    rows["SavedModel"] = {"MB": size}
    calls = {mode or "float32": lambda run=run: run(images=images[0]) for mode, run in runs.items()}
    seconds = latencies({**calls, "SavedModel": lambda: call(images[0])}, args.rounds)
    for name, taken in seconds.items():
        rows[name]["seconds"] = taken
    return {"what": f"{height} x {width} px, 5 slices", "rows": rows}


def detector_table(model: Any, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from keras_seg.data.images import read_image
    from keras_seg.detect import detect, resized_size
    from keras_seg.metrics import coco, coco_data

    data = args.data / "nuclei"
    content, _ = coco_data.load(data / "instances_val.json", "annotations")
    truth = coco_data.read_annotations(content, "bbox")
    groups: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for image in content["images"]:
        groups.setdefault((image["height"], image["width"]), []).append(image)
    groups = {size: images for size, images in groups.items() if len(images) >= LEAST and max(size) <= 400}
    chosen = sorted(image["id"] for images in groups.values() for image in images)
    results: dict[str, list] = {name: [] for name in ("Keras", *(mode or "float32" for mode in MODES))}
    differences: dict[str, list] = {mode or "float32": [] for mode in MODES}
    sizes, seconds = {}, {}
    train = sorted((data / "train").iterdir())
    options = {"score_threshold": 0.0, "max_detections": model.detections}
    for size, images in groups.items():
        small = resized_size(model, *size)
        height, width = (-(-side // model.size_divisor) * model.size_divisor for side in small)
        alike = [path for path in train if read_image(path).shape[:2] == size]
        paths = {mode or "float32": exported(model, mode, folder, height, width, alike) for mode in MODES}
        runs = {name: runner(path, args.threads) for name, path in paths.items()}
        for image in images:
            path = data / "val" / image["file_name"]
            kept = detect(model, path, **options)
            results["Keras"] += coco_data.to_results(image["id"], kept, truth)
            for name, run in runs.items():
                found = instances(model, run, path, height, width)
                results[name] += coco_data.to_results(image["id"], found, truth)
                differences[name].append(difference(found, kept))
        if len(images) == max(map(len, groups.values())):
            sizes = {name: path.stat().st_size / 1e6 for name, path in paths.items()}
            call, sizes["SavedModel"] = saved(model, folder)
            seconds = detector_latencies(
                model, runs, call, data / "val" / images[0]["file_name"], (height, width), args
            )
            what = f"latency at {height} x {width} px"
    rows: dict[str, dict[str, Any]] = {}
    for name in ("Keras", *sizes):
        rows[name] = {"MB": sizes.get(name), "seconds": seconds.get(name)}
        if name in results:
            rows[name]["scores"] = {
                f"{kind} AP": coco.score(
                    content, results[name], kind, image_ids=chosen, max_detections=model.detections
                ).figures["AP"]
                for kind in ("segm", "bbox")
            }
        if name in differences:
            boxes, scores, shares = (
                np.concatenate(values) for values in zip(*differences[name], strict=True)
            )
            rows[name]["agreement"] = {
                f"share of detections above {SURE} found": float(shares.mean()),
                "box difference (px), 99 of 100": float(np.quantile(boxes, 0.99)),
                "score difference, 99 of 100": float(np.quantile(scores, 0.99)),
                "largest box difference (px)": float(boxes.max()),
                "largest score difference": float(scores.max()),
            }
    return {"what": f"{len(chosen)} images in {len(groups)} sizes; {what}", "rows": rows}


def detector_latencies(
    model: Any,
    runs: Mapping[str, Callable[..., Any]],
    call: Callable[..., Any],
    path: Path,
    size: tuple[int, int],
    args: argparse.Namespace,
) -> dict[str, list[float]]:
    from keras_seg.data.images import read_image

    original, pixels = read_image(path)[None], fitted(model, path, *size)
    original = np.repeat(original, 3, -1) if original.shape[-1] == 1 else original
    calls = {name: lambda run=run: run(images=pixels) for name, run in runs.items()}
    return latencies({**calls, "SavedModel": lambda: call(original)}, args.rounds)


def fitted(model: Any, path: Path, height: int, width: int) -> np.ndarray:
    from keras_seg.export.tflite_images import fit_photograph

    return fit_photograph(model, path, height, width)[None]


def instances(
    model: Any, run: Callable[..., dict[str, np.ndarray]], path: Path, height: int, width: int
) -> Any:
    """What a file finds in an image, in its pixels."""
    from keras_seg.data.images import read_image
    from keras_seg.detect import instances_of, resized_size

    original = read_image(path).shape[:2]
    outputs = {name: values[0] for name, values in run(images=fitted(model, path, height, width)).items()}
    return instances_of(model, outputs, original, resized_size(model, *original))


def difference(found: Any, expected: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the expected detections that are sure: how far the boxes and scores of those found are off, and which are found."""
    from keras_seg.ops.boxes import pairwise_iou

    sure = expected.scores >= SURE
    if not sure.any() or not len(found):
        return np.zeros(0), np.zeros(0), np.zeros(int(sure.sum()))
    overlap = pairwise_iou(expected.boxes[sure], found.boxes).numpy()
    match, same = overlap.argmax(1), overlap.max(1) > 0.5
    boxes = np.abs(found.boxes[match] - expected.boxes[sure]).max(1)[same]
    return boxes, np.abs(found.scores[match] - expected.scores[sure])[same], same.astype(float)


def report(results: Mapping[str, Any]) -> str:
    about = results["machine"]
    intro = (
        f"{results['date']}, {about['cpu']}, {about['threads']} threads, {' '.join(about['instruction_sets'])}. Milliseconds are "
        "medians; the ratio is that of float32 in the same rounds. Agreement is with the Keras model on each image as it is, also "
        "where its resized sides are no multiples of 32 (540 px) and the files' input is padded."
    )
    lines = [intro]
    for name, table in results["tables"].items():
        rows = table["rows"]
        scores, agreement = ([*rows["float32"][kind]] for kind in ("scores", "agreement"))
        scores = [score for score in scores if not score.endswith("_threshold")]
        heads = ["", "MB", "ms", "times as fast", *scores, *agreement]
        lines += [
            "",
            f"## {name}",
            "",
            f"{table['what']}.",
            "",
            f"| {' | '.join(heads)} |",
            "|---" * len(heads) + "|",
        ]
        for row, values in rows.items():
            cells = [
                row,
                _cell(values.get("MB"), ".1f"),
                *_speed(values.get("seconds"), rows["float32"]["seconds"]),
            ]
            cells += [_cell(values.get("scores", {}).get(score), ".4f") for score in scores]
            cells += [_cell(values.get("agreement", {}).get(key), ".2g") for key in agreement]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _speed(seconds: Sequence[float] | None, base: Sequence[float]) -> list[str]:
    if not seconds:
        return ["", ""]
    ratio = statistics.median(b / a for a, b in zip(seconds, base, strict=True))
    return [f"{1e3 * statistics.median(seconds):.0f}", f"{ratio:.2f}"]


if __name__ == "__main__":
    main()
