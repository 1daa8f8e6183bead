"""Two contestants of coco_data.py: loaders in the manner of torchvision's detection reference and of Detectron2's.

Written for this comparison; only the order of their steps is the peers'.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from worker import serve

MAX_SIDE, MULTIPLE = 1333, 32


class Annotated(Dataset):
    """kind: "torchvision" or "detectron2"."""

    def __init__(self, annotations: Path, images: Path, kind: str, short_side: int, flip: float) -> None:
        content = json.loads(annotations.read_text())
        self.folder, self.kind, self.short_side, self.flip = images, kind, short_side, flip
        self.images, self.objects = content["images"], {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            self.objects[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple:
        record = self.images[i]
        with Image.open(self.folder / record["file_name"]) as file:
            picture = file.convert("RGB")
        make = self.as_torchvision if self.kind == "torchvision" else self.as_detectron2
        return make(picture, self.objects[record["id"]], record["id"])

    def as_torchvision(self, picture: Image.Image, objects: list[dict], number: int) -> tuple:
        width, height = picture.size
        masks, boxes = (
            np.zeros((len(objects), height, width), np.uint8),
            np.zeros((len(objects), 4), np.float32),
        )
        for mask, box, annotation in zip(masks, boxes, objects, strict=True):
            drawn = Image.new("L", (width, height))
            for polygon in annotation["segmentation"]:
                ImageDraw.Draw(drawn).polygon(polygon, fill=1)
            mask[:] = np.asarray(drawn)
            x, y, w, h = annotation["bbox"]
            box[:] = x, y, min(x + w, width), min(y + h, height)
        image = torchvision.transforms.functional.to_tensor(picture)
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.ones(len(objects), dtype=torch.int64),
            "masks": torch.from_numpy(masks),
            "image_id": number,
        }
        if torch.rand(()) < self.flip:
            image, target["masks"] = image.flip(-1), target["masks"].flip(-1)
            target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
        return image, target

    def as_detectron2(self, picture: Image.Image, objects: list[dict], number: int) -> tuple:
        image = np.asarray(picture)[:, :, ::-1]  # BGR
        height, width = image.shape[:2]
        scale = self.short_side / min(height, width)
        if max(height, width) * scale > MAX_SIDE:
            scale = MAX_SIDE / max(height, width)
        new = int(height * scale + 0.5), int(width * scale + 0.5)
        resized = Image.fromarray(np.ascontiguousarray(image)).resize(new[::-1], Image.Resampling.BILINEAR)
        image = np.asarray(resized)
        mirrored = bool(torch.rand(()) < self.flip)
        if mirrored:
            image = np.flip(image, axis=1)
        factor = np.array([new[1] / width, new[0] / height])
        boxes, polygons = np.zeros((len(objects), 4), np.float64), []
        for box, annotation in zip(boxes, objects, strict=True):
            x, y, w, h = annotation["bbox"]
            box[:] = np.clip(
                np.array([x, y, x + w, y + h]).reshape(2, 2), 0, (width, height)
            ).ravel() * np.tile(factor, 2)
            moved = [np.asarray(p, np.float64).reshape(-1, 2) * factor for p in annotation["segmentation"]]
            if mirrored:
                box[[0, 2]] = new[1] - box[[2, 0]]
                moved = [np.stack([new[1] - p[:, 0], p[:, 1]], axis=1) for p in moved]
            polygons.append([p.reshape(-1) for p in moved])
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.zeros(len(objects), dtype=torch.int64),
            "polygons": polygons,
            "image_id": number,
        }
        return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))), target


class Endless(Sampler):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self):
        while True:
            yield from torch.randperm(self.length).tolist()


class Collate:
    """What makes a network's batch of a list: torchvision's own transform, or padding to multiples of 32. Both are
    done in the workers here, where the peers do it in the training process."""

    def __init__(self, kind: str, short_side: int) -> None:
        self.transform = None
        if kind == "torchvision":
            statistics = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
            self.transform = GeneralizedRCNNTransform(
                short_side, MAX_SIDE, *statistics, size_divisible=MULTIPLE
            )

    def __call__(self, items: list[tuple]) -> tuple:
        images, targets = map(list, zip(*items, strict=True))
        if self.transform:
            batch, targets = self.transform(images, targets)
            return batch.tensors, batch.image_sizes, targets
        sizes = [tuple(image.shape[1:]) for image in images]
        height, width = (-(-max(s[axis] for s in sizes) // MULTIPLE) * MULTIPLE for axis in (0, 1))
        batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        return batch, sizes, targets


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["torchvision", "detectron2"])
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--images", type=Path)
    for name in ("batch", "short-side", "workers", "batches"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.workers)
    collate = Collate(args.kind, args.short_side)
    state: dict = {}

    def start():
        dataset = Annotated(args.annotations, args.images, args.kind, args.short_side, 0.5)
        loader = DataLoader(
            dataset, args.batch, sampler=Endless(len(dataset)), num_workers=args.workers, collate_fn=collate,
            persistent_workers=True,
        )  # fmt: skip
        return iter(loader)

    def run() -> None:
        if not state:
            state["batches"] = start()
        for _ in range(args.batches):
            next(state["batches"])

    def check() -> dict:
        dataset = Annotated(args.annotations, args.images, args.kind, args.short_side, 0.0)
        statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
        found = {}
        for i in range(len(dataset)):
            images, sizes, targets = collate([dataset[i]])
            height, width = sizes[0]
            image = images[0, :, :height, :width]
            if args.kind == "torchvision":
                image = (image * statistics[1] + statistics[0]) * 255
            found[str(targets[0]["image_id"])] = {
                "size": [height, width],
                "boxes": targets[0]["boxes"].tolist(),
                "sum": float(image.double().sum()),
            }
        return found

    version = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    serve({"run": run, "check": check, "version": lambda: version})


if __name__ == "__main__":
    main()
