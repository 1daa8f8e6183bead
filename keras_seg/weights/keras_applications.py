"""ImageNet weights of keras.applications' ResNets for a backbone.

Their convolutions have biases, and their normalisations add 1.001e-5 to the variance: both go into the normalisations'
moving statistics, exactly. They stride in a block's first 1x1 convolution (`stride_in_1x1=True`, the default) and pad
as `backbones.resnet` does. Their input is BGR minus a mean: the first kernel is turned round for RGB, and the mean is
`PIXEL_MEAN`, which `pixel_mean` of a model must be for the very same features. Detectron2's, the default, differs by at
most half a grey level, which no later normalisation could undo exactly: zeros pad the image after the subtraction.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from keras_seg.backbones.resnet import STAGES, VARIANTS
from keras_seg.weights import keras_resnet
from keras_seg.weights.download import fetch
from keras_seg.weights.layer_file import LayerFile
from keras_seg.weights.legacy_h5 import read_layers

URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "{}_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
# Keras publishes MD5 digests alone (keras/src/applications/resnet.py)
MD5 = {
    "resnet50": "4d473c1dd8becc155b73f8504c6f6626",
    "resnet101": "88cf7a10940856eca736dc7b7e228a21",
    "resnet152": "ee4c566cf9a93f14d82f913c2dc6dd0c",
}
PIXEL_MEAN = (123.68, 116.779, 103.939)  # RGB, 0-255; the standard deviation is 1
EPSILON = 1.001e-5


def read(
    variant: str,
    weights: str | Path = "imagenet",
    *,
    norm_eps: float = 1e-5,
    res5_as_head: bool = False,
) -> dict[str, np.ndarray]:
    """Arrays {"backbone/layer/variable": …} for RGB images, of a file with or without the classifier, which is left out.

    Args:
        variant: "resnet50", "resnet101" or "resnet152".
        weights: "imagenet" for the published ones (downloaded once, see `download.fetch`), or a file: `.h5` of Keras 2,
            or of Keras 3's `model.save`.
        norm_eps: of the backbone that gets them.
        res5_as_head: the last stage's under "res5/…", for structure "c4".

    `assign` them to the parts that they are for: `assign({"backbone": model.parts["backbone"]}, arrays, path)`.

    Raises:
        ValueError: another variant; a truncated, damaged or foreign file; stages or blocks of another variant.
        FileNotFoundError, DownloadFailed, OSError: see `download.fetch`.
    """
    if variant not in MD5:
        raise ValueError(f"keras.applications has no {variant!r} backbone for keras_seg: {', '.join(MD5)}")
    path = _published(variant) if weights == "imagenet" else Path(weights)
    arrays = keras_resnet.convert(LayerFile(path, read_layers(path)), epsilon=EPSILON, norm_eps=norm_eps)
    _require_variant(variant, path, arrays)
    stem = arrays["stem_conv1/kernel"]
    arrays["stem_conv1/kernel"] = stem[:, :, ::-1]  # BGR to RGB
    return {
        f"{'res5' if res5_as_head and name.startswith('res5') else 'backbone'}/{name}": array
        for name, array in arrays.items()
    }


def _published(variant: str) -> Path:
    url = URL.format(variant)
    path = fetch(url)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != MD5[variant]:
        raise ValueError(
            f"{path}: damaged or exchanged: its md5 is {digest}, that of {url} is {MD5[variant]}; delete it to "
            "download it again"
        )
    return path


def _require_variant(variant: str, path: Path, arrays: dict[str, np.ndarray]) -> None:
    """ValueError naming the convolutions that differ from the variant's."""
    expected = {"stem_conv1"}
    for stage, blocks in zip(STAGES, VARIANTS[variant].blocks, strict=True):
        expected |= {f"{stage}_{block}_conv{place}" for block in range(blocks) for place in (1, 2, 3)}
        expected.add(f"{stage}_0_shortcut")
    found = {name.split("/")[0] for name in arrays if name.endswith("/kernel")}
    if found != expected:
        lacking, more = sorted(expected - found), sorted(found - expected)
        parts = [
            f"{word} {', '.join(names[:4])}"
            for word, names in (("lacks", lacking), ("also has", more))
            if names
        ]
        raise ValueError(f"{path}: no weights of {variant}: it {'; '.join(parts)}")
