"""What the parity tests share: the rule's weights through the real importers, and comparisons with golden files.

Tolerances follow golden/README.md. Features: 1e-4 of a tensor's standard deviation (2e-5 was seen between machines).
Proposals and detections are compared as sets (same class, overlap above 0.98), of which 1 in 100 may be missing: boxes
within 0.05 px, scores and logits 1e-3, mask probabilities 5e-3, pasted masks an overlap of 0.99, 99 of 100 keypoints
within 0.1 px.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from torch_files import write_state_dictionary

from keras_seg.data.resize import resize
from keras_seg.instances import Instances
from keras_seg.models import MaskRCNN, mask_rcnn
from keras_seg.ops.boxes import pairwise_iou
from keras_seg.ops.proposals import select_proposals
from keras_seg.weights import detectron2, torchvision
from keras_seg.weights.assign import assign

SAME = 0.98  # overlap of a box and its reference
TORCHVISION = {
    "stride_in_1x1": False, "pixel_std": (58.395, 57.12, 57.375), "anchors_rounded": True, "rpn_min_size": 1e-3,
    "box_min_size": 1e-2, "roi_sampling": 2, "roi_aligned": False, "convention": "torchvision",
}  # fmt: skip
TORCHVISION_V2 = {
    "normalization": "batch", "fpn_normalization": "batch", "rpn_convs": 2, "box_head": "conv_fc",
    "mask_head": "conv_norm",
}  # fmt: skip


def rule(shared: Path):
    """The module that fills weights, golden/weights.py."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden/weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def detectron2_model(shared: Path, config: str, folder: Path) -> MaskRCNN:
    """The model of a golden configuration, its weights written as a model-zoo pickle and imported."""
    folder_of = shared / "golden/detectron2" / config
    settings = json.loads((folder_of / "params.json").read_text())["settings"]
    if settings["fpn_in_features"]:
        structure = "fpn"
    else:
        structure = "c4" if settings["resnet_out_features"] == ["res4"] else "dc5"
    model = mask_rcnn(
        settings["num_classes"],
        backbone=f"resnet{settings['resnet_depth']}",
        structure=structure,
        masks=settings["mask_on"],
        keypoints=17 if settings["keypoint_on"] else 0,
        class_agnostic_boxes=settings["box_cls_agnostic"],
    )
    module = rule(shared)
    path = folder / "model_final.pkl"
    module.write_detectron2_pickle(path, *module.load_params(folder_of / "params.json"))
    assign(model.parts, detectron2.read(path), path)
    path.unlink()
    return model


def torchvision_model(shared: Path, name: str, folder: Path) -> MaskRCNN:
    """The same for torchvision, whose weights are written as a `.pth`."""
    folder_of = shared / "golden/torchvision" / name
    settings = json.loads((folder_of / "params.json").read_text())["settings"]
    model = mask_rcnn(
        settings["num_classes"] - 1,  # the background is not counted here
        norm_eps=settings["norm_eps"]["BatchNorm2d"],
        masks=name.startswith("mask"),
        keypoints=17 if name.startswith("keypoint") else 0,
        **TORCHVISION,
        **(TORCHVISION_V2 if name.endswith("v2") else {}),
    )
    module = rule(shared)
    path = folder / "model.pth"
    write_state_dictionary(path, module.fill_all(*module.load_params(folder_of / "params.json")))
    assign(model.parts, torchvision.read(path), path)
    path.unlink()
    return model


def network_input(
    shared: Path, names: Sequence[str], sizes: Sequence[Sequence[int]], model: MaskRCNN
) -> dict[str, tf.Tensor]:
    """{"image", "size"} of golden images, resized as the model's origin does and padded to the largest."""
    multiple = model.size_divisor
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    batch = np.zeros((len(names), height, width, 3), np.float32)
    for row, name, (h, w) in zip(batch, names, sizes, strict=True):
        picture = np.asarray(Image.open(shared / "golden/images" / f"{name}.png").convert("RGB"))
        row[:h, :w] = resize(picture, (h, w), model.convention)
    return {"image": tf.constant(batch), "size": tf.constant(np.array(sizes, np.float32))}


def feature_maps(model: MaskRCNN, inputs: Mapping[str, tf.Tensor]) -> dict[str, Any]:
    """What the networks before the regions give: "input", "backbone", "fpn", "logits", "deltas"; lists of levels."""
    pixels = model.get_layer("normalize")(inputs["image"], inputs["size"])
    maps = model.parts["backbone"](pixels)
    maps = maps if isinstance(maps, list) else [maps]
    levels = model.parts["fpn"](maps) if "fpn" in model.parts else maps
    logits, deltas = zip(*(model.parts["rpn"](level) for level in levels), strict=True)
    return {"input": pixels, "backbone": maps, "fpn": levels, "logits": list(logits), "deltas": list(deltas)}


def proposals(
    model: MaskRCNN, found: Mapping[str, Any], size: tf.Tensor, **changes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [B, P, 4], logits [B, P] and their number [B]. changes: of the layer's pre_nms and post_nms."""
    layer, batch = model.get_layer("proposals"), len(size)
    options = {"pre_nms": layer.pre_nms, "post_nms": layer.post_nms, **changes}
    chosen = select_proposals(
        [tf.reshape(level, [batch, -1]) for level in found["logits"]],
        [tf.reshape(level, [batch, -1, 4]) for level in found["deltas"]],
        layer.anchors(found["logits"]),
        size,
        nms_threshold=layer.nms_threshold,
        min_size=layer.min_size,
        **options,
    )
    return tuple(array.numpy() for array in chosen)


def compare_map(found: tf.Tensor, golden: Mapping[str, np.ndarray], key: str) -> None:
    """found: [1, H, W, C]. golden: the whole tensor under `key`, or a sample of it."""
    found = np.transpose(found, (0, 3, 1, 2))
    if f"{key}.sample" in golden:
        assert list(found.shape) == golden[f"{key}.shape"].tolist(), key
        c, y, x = golden[f"{key}.stride"]
        found, expected, deviation = (
            found[0, ::c, ::y, ::x],
            golden[f"{key}.sample"],
            golden[f"{key}.stats"][1],
        )
    else:
        expected, deviation = golden[key], golden[key].std()
    difference = np.abs(found - expected).max()
    assert difference <= 1e-4 * deviation, (key, difference / deviation)


def matched(
    boxes: np.ndarray,
    expected: np.ndarray,
    classes: np.ndarray | None = None,
    wanted: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each expected box [N, 4] the found one that overlaps it most, int [N], and whether that is the same: bool [N]."""
    overlap = pairwise_iou(tf.constant(expected), tf.constant(boxes)).numpy()
    if classes is not None:
        overlap = np.where(wanted[:, None] == classes, overlap, 0)
    return overlap.argmax(1), overlap.max(1) > SAME


def compare_proposals(boxes: np.ndarray, logits: np.ndarray, golden: Mapping, prefix: str = "") -> None:
    """boxes: [P, 4]; logits: [P], by falling logit."""
    expected = golden[f"{prefix}proposals.boxes"]
    assert abs(len(boxes) - len(expected)) <= len(expected) // 100
    match, same = matched(boxes, expected)
    assert same.mean() >= 0.99, same.mean()
    np.testing.assert_allclose(boxes[match[same]], expected[same], atol=0.05)
    if f"{prefix}proposals.objectness_probs" in golden:
        logits, scores = 1 / (1 + np.exp(-logits)), golden[f"{prefix}proposals.objectness_probs"]
    else:
        scores = golden[f"{prefix}proposals.objectness_logits"]
    np.testing.assert_allclose(logits[match[same]], scores[same], atol=1e-3)
    assert (np.diff(logits) <= 0).all()


def compare_instances(found: Instances, golden: Mapping, prefix: str = "") -> dict[str, float]:
    """found: what `segment` gives for the image. Returns the largest differences, for a report."""
    expected = {
        key.removeprefix(f"{prefix}instances."): golden[key]
        for key in golden
        if key.startswith(f"{prefix}instances.")
    }
    first = 1 if found.convention == "torchvision" else 0  # torchvision's class 0 is the background
    wanted, boxes = expected["classes"] - first, expected["boxes"]
    match, same = matched(found.boxes, boxes, found.classes, wanted)
    allowed = max(1, len(boxes) // 100)
    assert same.sum() >= len(boxes) - allowed, f"{same.sum()} of {len(boxes)} found"
    # and nothing else: what is new stands among the reference's next best
    known, known_classes = boxes, wanted
    if f"{prefix}runners_up.boxes" in golden:
        known = np.concatenate([boxes, golden[f"{prefix}runners_up.boxes"]])
        known_classes = np.concatenate([wanted, golden[f"{prefix}runners_up.classes"] - first])
    assert matched(known, found.boxes, known_classes, found.classes)[1].sum() >= len(found) - allowed
    assert (np.diff(found.scores) <= 0).all()
    match = match[same]
    report = {
        "missing": int((~same).sum()),
        "box": np.abs(found.boxes[match] - boxes[same]).max(),
        "score": np.abs(found.scores[match] - expected["scores"][same]).max(),
    }
    if "mask_probs" in expected:
        probabilities = expected["mask_probs"][same].astype(np.float32)
        report["mask"] = np.abs(found.mask_probabilities[match] - probabilities).max()
    if "masks_packed" in expected:
        height, width = found.image_size
        masks = np.unpackbits(expected["masks_packed"][same], axis=1)[:, : height * width].astype(bool)
        ours = found.masks[match].reshape(len(match), -1)
        union, common = (ours | masks).sum(1), (ours & masks).sum(1)
        report["mask IoU"] = np.where(union > 0, common / np.maximum(union, 1), 1).min()
    if "keypoints" in expected:
        scores = expected["keypoints_scores"] if first else expected["keypoints"][..., 2]
        distance = np.abs(found.keypoints[match, :, :2] - expected["keypoints"][same][..., :2]).max(-1)
        report["keypoints within 0.1 px"] = (distance <= 0.1).mean()
        report["keypoint score"] = np.quantile(np.abs(found.keypoints[match, :, 2] - scores[same]), 0.99)
    assert report["box"] <= 0.05 and report["score"] <= 1e-3, report
    assert report.get("mask", 0) <= 5e-3 and report.get("mask IoU", 1) >= 0.99, report
    assert report.get("keypoints within 0.1 px", 1) >= 0.99 and report.get("keypoint score", 0) <= 1e-3, (
        report
    )
    return report
