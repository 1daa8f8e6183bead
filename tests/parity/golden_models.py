"""What the parity tests share: the rule's weights through the real importer, and the network's input."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_seg.models import MaskRCNN, mask_rcnn
from keras_seg.weights import detectron2
from keras_seg.weights.assign import assign


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
    return model


def network_input(shared: Path, names: list[str], sizes: list, multiple: int) -> dict[str, tf.Tensor]:
    """{"image", "size"} of golden images, resized as Detectron2 does and padded to the largest."""
    height, width = (-(-max(size[axis] for size in sizes) // multiple) * multiple for axis in (0, 1))
    batch = np.zeros((len(names), height, width, 3), np.float32)
    for row, name, (h, w) in zip(batch, names, sizes, strict=True):
        picture = Image.open(shared / "golden/images" / f"{name}.png").convert("RGB")
        row[:h, :w] = np.asarray(picture.resize((w, h), Image.BILINEAR))
    return {"image": tf.constant(batch), "size": tf.constant(np.array(sizes, np.float32))}
