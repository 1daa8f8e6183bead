"""What maskrcnn_nuclei finds in the validation images, by kind of image, and where it errs: `make bench-nuclei`.

Average precision at 400 and at 100 detections an image, over all images, those under fluorescence (grey) and those of
stained tissue (coloured), and with as many nuclei as few or many images have; and docs/maskrcnn_nuclei_errors.png, the images
with most errors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compare
from claims import has_colours
from compare import HERE

NAME = "maskrcnn_nuclei"
DETECTIONS = (400, 100)
MANY = 50  # nuclei in an image, from which it is crowded
KINDS = ("segm", "bbox")
FIGURES = ("AP", "AP50", "AP75")
WORST = 4  # images drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NAME, help="a recipe of the zoo, or a file")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared/data/nuclei")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results", help="folder of nuclei.json and nuclei.md"
    )
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs/maskrcnn_nuclei_errors.png")
    args = parser.parse_args()
    from keras_seg import evaluate, zoo
    from keras_seg.metrics import coco, coco_data

    images = args.data / "val"
    content, _ = coco_data.load(args.data / "instances_val.json", "annotations")
    model = zoo.load(args.model, args.weights)
    find = evaluate.finder(model, max_detections=model.detections)
    found = evaluate.results(find, content, images)
    results = {
        "date": date.today().isoformat(),
        "machine": compare.machine(os.cpu_count()),
        "name": model.name,
        "groups": {},
    }
    for group, chosen in groups(content, images).items():
        results["groups"][group] = {
            "images": len(chosen),
            "nuclei": sum(one["image_id"] in chosen for one in content["annotations"]),
            "figures": {
                f"{kind}_{figure}_{most}": coco.score(
                    content, found, kind, image_ids=sorted(chosen), max_detections=most
                ).figures[figure]
                for most in DETECTIONS
                for kind in KINDS
                for figure in FIGURES
            },
        }
    compare.write(results, report(results), args.output, "nuclei")
    draw_worst(found, content, images, args.picture)


def groups(content: Mapping, images: Path) -> dict[str, set[int]]:
    """Ids of the images of each kind."""
    count = {image["id"]: 0 for image in content["images"]}
    for one in content["annotations"]:
        count[one["image_id"]] += 1
    coloured = {image["id"] for image in content["images"] if has_colours(images / image["file_name"])}
    crowded = {image for image, nuclei in count.items() if nuclei >= MANY}
    return {
        "all": set(count),
        "fluorescence (grey)": set(count) - coloured,
        "stained (coloured)": coloured,
        f"fewer than {MANY} nuclei": set(count) - crowded,
        f"{MANY} nuclei or more": crowded,
    }


def draw_worst(found: Sequence[Mapping], content: Mapping, images: Path, file: Path) -> None:
    """The images with the lowest F1 side by side: right green, missed red, false blue."""
    from PIL import Image

    from keras_seg import visualize
    from keras_seg.error_pictures import write_error_pictures

    with tempfile.TemporaryDirectory() as folder:
        errors = write_error_pictures(found, content, images, folder, count=WORST)
        panels = [
            (f"{len(e.right)} right, {len(e.missed)} missed, {len(e.false)} false", Image.open(path))
            for path, e in errors.items()
        ]
        visualize.side_by_side(panels).save(file)
    compare.say(f"{file}: the {len(panels)} images with most errors")


def report(results: Mapping) -> str:
    about, columns = results["machine"], [f"{k}_{f}_{n}" for k in KINDS for n in DETECTIONS for f in FIGURES]
    heads = [
        f"{'mask' if k == 'segm' else 'box'} {f} ({n})" for k in KINDS for n in DETECTIONS for f in FIGURES
    ]
    lines = [
        (
            f"{results['date']}, {about['cpu']}, {about['cores']} cores. {results['name']} on the validation part, percent; in brackets how "
            "many detections an image count."
        ),
        "",
        f"| images | number | nuclei | {' | '.join(heads)} |",
        "|---" * (3 + len(heads)) + "|",
    ]
    for name, group in results["groups"].items():
        cells = " | ".join(f"{100 * group['figures'][column]:.1f}" for column in columns)
        lines.append(f"| {name} | {group['images']} | {group['nuclei']} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
