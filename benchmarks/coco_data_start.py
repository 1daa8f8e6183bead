"""How long `data.coco` takes to start on annotations as large as COCO's, and how much memory: `make bench-data`.

The annotations are made up: 118,287 images, 860,001 annotations, polygons of 25 points in the mean, some crowds by run
lengths. All the images are links to one file.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS, CATEGORIES = 118_287, 860_001, 80
HEIGHT, WIDTH = 480, 640


def write(folder: Path, images: int, annotations: int, categories: int = CATEGORIES) -> Path:
    """`instances.json` and `images/` in the folder; the annotations' order has nothing to do with the images'."""
    from PIL import Image

    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    (folder / "images").mkdir(parents=True)
    first = folder / "images/000000000001.jpg"
    Image.fromarray(picture).resize((WIDTH, HEIGHT)).save(first)
    for number in range(2, images + 1):
        os.symlink(first.name, folder / f"images/{number:012d}.jpg")
    path = folder / "instances.json"
    with path.open("w") as file:
        file.write('{"info": {}, "licenses": [], "images": [')
        rows = (
            {"license": 1, "file_name": f"{n:012d}.jpg", "coco_url": f"http://example.org/{n:012d}.jpg",
             "height": HEIGHT, "width": WIDTH, "date_captured": "2013-11-14 11:18:45", "id": n}
            for n in range(1, images + 1)
        )  # fmt: skip
        file.write(", ".join(map(json.dumps, rows)))
        names = [{"id": k + k // 8 + 1, "name": f"thing {k}"} for k in range(categories)]  # ids with gaps
        file.write(f'], "categories": {json.dumps(names)}, "annotations": [')
        owners = random.integers(1, images + 1, annotations)
        for number in range(annotations):
            file.write(", " if number else "")
            file.write(json.dumps(_annotation(number, int(owners[number]), names, random)))
        file.write("]}")
    return path


def _annotation(number: int, image: int, names: list[dict], random: np.random.Generator) -> dict:
    width, height = random.uniform(10, 300, 2)
    x, y = random.uniform(0, WIDTH - width), random.uniform(0, HEIGHT - height)
    crowd = number % 86 == 0
    if crowd:
        cuts = np.sort(random.choice(HEIGHT * WIDTH, 400, replace=False))
        shape = {"size": [HEIGHT, WIDTH], "counts": np.diff(cuts, prepend=0, append=HEIGHT * WIDTH).tolist()}
    else:
        angles = np.linspace(0, 2 * np.pi, int(random.integers(10, 41)), endpoint=False)
        points = np.stack(
            [x + width * (1 + np.cos(angles)) / 2, y + height * (1 + np.sin(angles)) / 2], axis=1
        )
        shape = [np.round(points.ravel(), 2).tolist()]
    return {
        "segmentation": shape, "area": round(width * height, 4), "iscrowd": int(crowd), "image_id": image,
        "bbox": [round(v, 2) for v in (x, y, width, height)],
        "category_id": names[number % len(names)]["id"], "id": 10_000 + number,
    }  # fmt: skip


def measure(path: Path, images: Path) -> dict[str, float]:
    """Seconds and peak MiB, libraries included: of the start, and with 50 batches of 2 images besides."""
    import tensorflow as tf

    from keras_seg import data

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    figures = {"MiB before": peak()}
    began, used = time.perf_counter(), time.process_time()
    dataset = data.coco(path, images, batch_size=2, seed=1)
    figures |= {"seconds to start": time.perf_counter() - began, "MiB after the start": peak()}
    figures["seconds to start, processor time"] = time.process_time() - used
    batches = iter(dataset)
    next(batches)
    figures |= {"seconds to the first batch": time.perf_counter() - began}
    for _ in range(50):
        next(batches)
    figures |= {"MiB after 50 batches": peak()}
    assert tf.executing_eagerly()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--annotations", type=int, default=ANNOTATIONS)
    parser.add_argument("--folder", type=Path, help="keep the made-up data here and use it again")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure / "instances.json", args.measure / "images")))
        return
    folder = args.folder or Path(tempfile.mkdtemp())
    try:
        path = folder / "instances.json"
        if not path.exists():
            print("writing the annotations", file=sys.stderr)
            write(folder, args.images, args.annotations)
        line = [sys.executable, __file__, "--measure", str(folder)]
        figures = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        size = path.stat().st_size / 2**20
        print(f"{args.images} images, {args.annotations} annotations, {size:.0f} MiB of JSON")
        for name, value in figures.items():
            print(f"{name:<34} {value:8.1f}")
    finally:
        if not args.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
