"""Checkpoints of TensorFlow Model Garden's Mask R-CNN (`maskrcnn_resnetfpn_coco`) under keras_seg's names and layouts.

Only TensorFlow is needed to read them: a layer is found by its place among the checkpoint's objects, one of the pyramid
by its name, which the object graph keeps too.

Converted exactly (up to float32's rounding): the epsilon of 1e-4 goes into the backbone's and the box head's
normalisations; those of the pyramid, of the proposal head (one for each level: `rpn_shared=False`), of the dense layers
and of the mask head go into the kernels before them; deltas (dy, dx, dh, dw) become dx, dy, dw, dh; the background,
class 0, goes last or away. Anchors have ratios of width to height there: they are put in the order in which
`anchor_ratios`, height over width, is ascending, as in (0.5, 1, 2). One anchor size a level is understood.

`ARGUMENTS` are those of `models.mask_rcnn` under which all its networks compute what Model Garden's do. `DIFFERENCES`
says what the steps between the networks do otherwise; `read` logs it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_seg.weights.layer_file import XY, LayerFile, ungrouped

_log = logging.getLogger(__name__)

EPSILON = 1e-4  # norm_activation.norm_epsilon of its Mask R-CNN
LEVELS = range(2, 7)
PARTS = ("backbone", "decoder", "rpn_head", "detection_head", "mask_head")
GRAPH, VALUE, SLOT = "_CHECKPOINTABLE_OBJECT_GRAPH", "/.ATTRIBUTES/VARIABLE_VALUE", "/.OPTIMIZER_SLOT/"

# of `models.mask_rcnn`; backbone and classes are the checkpoint's (COCO: 90); box_head "fc" where it has no convolutions
ARGUMENTS = {
    "structure": "fpn",
    "stride_in_1x1": False,
    "padding": "same",
    "fpn_top": "conv",
    "rpn_shared": False,
    "anchor_offset": 0.5,
    "box_head": "conv_fc",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
    "roi_sampling": 1,
    "roi_aligned": False,
    "short_side": 1024,
    "max_side": 1024,
}
DIFFERENCES = (
    "RoIs are pooled from four levels of the pyramid; there, those of 896 pixels and more from the fifth.",
    "RoIs are at least one cell of their level wide and high; there, they may be smaller.",
    "Images are padded to multiples of 32; there, to a square of a fixed size.",
    "Classes keep all their detections up to the limit of an image; there, 5000 candidates a class at most.",
)


def read(path: str | Path, *, norm_eps: float = 1e-5) -> dict[str, np.ndarray]:
    """The checkpoint's arrays under keras_seg's variable names.

    path: the checkpoint ("ckpt-1", or its file "ckpt-1.index"), or a folder, for the latest in it. norm_eps: of the
    model that gets them.

    Raises FileNotFoundError; ValueError: truncated, damaged, no object-based checkpoint of TensorFlow 2; layers or
    arrays that are missing or not understood, which are named.
    """
    path = _prefix(Path(path))
    file = LayerFile(path, _read_layers(path))
    arrays = _backbone(file, norm_eps) | _fpn(file) | _rpn(file)
    arrays |= _box_head(file, norm_eps) | _mask_head(file)
    file.require_all_taken("Model Garden Mask R-CNN")
    _log.warning("%s: what differs from Model Garden's own inference: %s", path, " ".join(DIFFERENCES))
    return arrays


def _prefix(path: Path) -> Path:
    """The checkpoint's name, without an ending."""
    import tensorflow as tf

    if path.is_dir():
        latest = tf.train.latest_checkpoint(str(path))
        if latest is None:
            raise FileNotFoundError(
                f"{path}: a folder without a TensorFlow checkpoint (it lacks `checkpoint`)"
            )
        return Path(latest)
    prefix = path.with_suffix("") if path.suffix == ".index" else path
    if not Path(f"{prefix}.index").is_file():
        raise FileNotFoundError(f"{prefix}.index: no such TensorFlow checkpoint")
    return prefix


def _read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{layer: {variable: array}} of the networks' variables; a layer of the pyramid is "decoder/" and its name."""
    import tensorflow as tf
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    layers: dict[str, dict[str, np.ndarray]] = {}
    try:
        reader = tf.train.load_checkpoint(str(path))
        graph = TrackableObjectGraph()
        if reader.has_tensor(GRAPH):
            graph.ParseFromString(reader.get_tensor(GRAPH))
        for attribute in (attribute for node in graph.nodes for attribute in node.attributes):
            key = attribute.checkpoint_key.removeprefix("model/")
            if not key.endswith(VALUE) or key.split("/")[0] not in PARTS or SLOT in key:
                continue
            layer, _, variable = key.removesuffix(VALUE).rpartition("/")
            if layer.startswith("decoder/"):
                # the place depends on the order into which Keras sorted the layers
                layer = f"decoder/{'/'.join(attribute.full_name.split('/')[-2:-1])}"
            layers.setdefault(layer, {})[variable] = reader.get_tensor(attribute.checkpoint_key)
    except Exception as error:  # protobuf's, or any of TensorFlow's
        raise ValueError(f"{path}: truncated, damaged, or no TensorFlow checkpoint ({error})") from error
    if not layers:
        raise ValueError(
            f"{path}: a checkpoint, but no object-based one of TensorFlow 2 with {', '.join(PARTS)}"
        )
    return layers


def _backbone(file: LayerFile, norm_eps: float) -> dict[str, np.ndarray]:
    """A stage begins with the block that has a shortcut of its own."""
    places = {"stem_conv1": ("backbone/layer_with_weights-0", "backbone/layer_with_weights-1")}
    found = (re.match(r"(backbone/layer_with_weights-(\d+))/_conv1", layer) for layer in file.layers)
    blocks = sorted({(int(match[2]), match[1]) for match in found if match})
    stage, block = 1, 0
    for _, layer in blocks:
        first = f"{layer}/_shortcut" in file
        stage, block = (stage + 1, 0) if first else (stage, block + 1)
        name = f"res{stage}_{block}"
        if first:
            places[f"{name}_shortcut"] = f"{layer}/_shortcut", f"{layer}/_norm0"
        places |= {f"{name}_conv{k}": (f"{layer}/_conv{k}", f"{layer}/_norm{k}") for k in (1, 2, 3)}
    arrays: dict[str, np.ndarray] = {}
    for ours, (convolution, norm) in places.items():
        part = file.normalized(convolution, norm, EPSILON, norm_eps=norm_eps, bias=False)
        arrays |= {f"backbone/{ours}{variable}": array for variable, array in part.items()}
    return arrays


def _fpn(file: LayerFile) -> dict[str, np.ndarray]:
    *levels, top = LEVELS
    layers = {}
    for level in levels:
        layers[f"fpn_lateral{level}"] = file.linear(f"decoder/lateral_{level}")
        layers[f"fpn_output{level}"] = file.folded(
            f"decoder/post_hoc_{level}", f"decoder/norm_{level}", EPSILON
        )
    # it begins with the level below, not yet normalised
    layers[f"fpn_output{top}"] = file.linear(f"decoder/post_hoc_{levels[-1]}")
    layers[f"fpn_top{top}"] = file.folded(f"decoder/coarser_{top}", f"decoder/norm_{top}", EPSILON)
    return _named("fpn", layers)


def _rpn(file: LayerFile) -> dict[str, np.ndarray]:
    convs = len([*_numbered(file, "rpn_head/_convs")])
    layers = {}
    for index, convolution in enumerate(_numbered(file, "rpn_head/_convs")):
        name = "conv" if convs == 1 else f"conv{index}"
        for place, level in enumerate(LEVELS):
            norm = f"rpn_head/_norms/{place}/{index}"
            layers[f"{name}_p{level}"] = file.folded(convolution, norm, EPSILON)
    layers["objectness_logits"] = _each(file.linear("rpn_head/_classifier"), lambda array: array[..., ::-1])
    deltas = file.grouped("rpn_head/_box_regressor", 4)
    layers["anchor_deltas"] = _each(deltas, lambda array: ungrouped(array[..., ::-1, XY]))
    return _named("rpn", layers)


def _box_head(file: LayerFile, norm_eps: float) -> dict[str, np.ndarray]:
    head = "detection_head/0" if "detection_head/0/_classifier" in file else "detection_head"
    arrays: dict[str, np.ndarray] = {}
    layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for index, convolution in enumerate(_numbered(file, f"{head}/_convs")):
        part = file.normalized(convolution, f"{head}/_conv_norms/{index}", EPSILON, norm_eps=norm_eps)
        arrays |= {f"box_head/conv{index + 1}{variable}": array for variable, array in part.items()}
    for index, dense in enumerate(_numbered(file, f"{head}/_fcs")):
        layers[f"fc{index + 1}"] = file.folded(dense, f"{head}/_fc_norms/{index}", EPSILON)
    boxes = file.grouped(f"{head}/_box_regressor", 4)
    agnostic = len(boxes[1]) == 1  # else the first box is the background's
    predictor = {
        "cls_score": [np.roll(array, -1, axis=-1) for array in file.linear(f"{head}/_classifier")],
        "bbox_pred": [ungrouped(array[..., 0 if agnostic else 1 :, XY]) for array in boxes],
    }
    return arrays | _named("box_head", layers) | _named("box_predictor", predictor)


def _each(
    pair: tuple[np.ndarray, np.ndarray], change: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias, changed alike."""
    return change(pair[0]), change(pair[1])


def _mask_head(file: LayerFile) -> dict[str, np.ndarray]:
    if not any(layer.startswith("mask_head/") for layer in file.layers):
        return {}  # Faster R-CNN
    layers = {}
    for index, convolution in enumerate(_numbered(file, "mask_head/_convs")):
        layers[f"mask_fcn{index + 1}"] = file.folded(convolution, f"mask_head/_conv_norms/{index}", EPSILON)
    layers["deconv"] = file.folded("mask_head/_deconv", "mask_head/_deconv_bn", EPSILON, axis=-2)
    masks = file.linear("mask_head/_mask_regressor")
    agnostic = len(masks[1]) == 1  # else the first mask is the background's
    layers["predictor"] = _each(masks, lambda array: array[..., 0 if agnostic else 1 :])
    return _named("mask_head", layers)


def _numbered(file: LayerFile, name: str) -> Iterator[str]:
    """ "name/0", "name/1", … as many as there are."""
    index = 0
    while f"{name}/{index}" in file:
        yield f"{name}/{index}"
        index += 1


def _named(part: str, layers: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        f"{part}/{layer}/{variable}": array
        for layer, arrays in layers.items()
        for variable, array in zip(("kernel", "bias"), arrays, strict=True)
    }
