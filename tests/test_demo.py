"""The demo's whole way on small slices and images, and its message where there are none."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image
from square_files import write_squares

import keras_seg
from keras_seg import demo, demo_nuclei, evaluate
from keras_seg.models import mask_rcnn
from keras_seg.models.unet import unet


def small_model():
    return unet(depth=1, base_channels=2, padding="same", rotations=2, class_names=["membrane", "cell"])


def small_detector(detections: int = 4):
    return mask_rcnn(
        2, backbone="resnet18", width=4, fpn_channels=8, box_head_channels=16, mask_channels=8, proposals=20,
        detections=detections, score_threshold=0.0, short_side=64, max_side=64,
    )  # fmt: skip


@pytest.fixture
def data(tmp_path):
    """Four slices of 40 x 48 pixels: a bright interior, a dark cross of membrane."""
    labels = np.full((4, 40, 48), 255, np.uint8)
    labels[:, 18:22], labels[:, :, 20:24] = 0, 0
    noise = np.random.default_rng(0).integers(0, 60, labels.shape)
    tifffile.imwrite(tmp_path / demo.VOLUME, (labels // 2 + noise).astype(np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / demo.LABELS, labels, photometric="minisblack")
    return tmp_path


def test_the_whole_way(data, tmp_path, capsys):
    model, output = small_model(), tmp_path / "out"
    for _ in range(2):  # a second run replaces the first
        scores = demo.run(model, data, output, slices=(1, 3))
    printed = capsys.readouterr().out
    probability = keras_seg.segment(model, tifffile.imread(data / demo.VOLUME)[[1, 3]])[..., 1]
    expected = keras_seg.metrics.isbi.evaluate(probability, tifffile.imread(data / demo.LABELS)[[1, 3]])
    assert scores == expected
    for name in ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info"):
        assert re.search(rf"{name} .*{expected[name]:.5f}", printed)
    assert "segmented slices 1, 3" in printed
    assert float(re.search(r"differ by at most (\S+)", printed)[1]) < 1e-5
    assert Image.open(output / "segmentation.png").width > 3 * 320
    assert "serving_default" in tf.saved_model.load(str(output / "saved_model" / "1")).signatures


def test_the_whole_way_of_nuclei(tmp_path, capsys):
    write_squares(tmp_path, "val", 4, seed=0)
    (tmp_path / "val.json").rename(tmp_path / demo_nuclei.ANNOTATIONS)
    model = small_detector()
    figures = demo_nuclei.run(model, tmp_path, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "nuclei in 4 images of" in printed
    content = json.loads((tmp_path / demo_nuclei.ANNOTATIONS).read_text())
    find = evaluate.finder(model, max_detections=4)
    found = evaluate.results(find, content, tmp_path / "val")
    expected = evaluate.score(found, content, ["bbox", "segm"], max_detections=400)
    assert f"found {sum(one['score'] >= 0.5 for one in found)} nuclei" in printed
    assert figures == {
        f"{kind}_{name}": score.figures[name] for kind, score in expected.items() for name in ("AP", "AP50")
    }
    assert "at 400 an image:  bbox_AP" in printed and "at 100 an image:  bbox_AP" in printed
    assert Image.open(tmp_path / "out/nuclei.png").width > 3 * 96


def test_the_command_on_real_data(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SEG_SHARED", str(shared))
    monkeypatch.setattr("keras_seg.demo.run", lambda *given, run=demo.run: run(*given, slices=(0,)))
    # of the neurons a part of one slice
    for name in (demo.VOLUME, demo.LABELS):
        part = tifffile.imread(shared / "data/isbi2012" / name)[22:23, :160, :160]
        tifffile.imwrite(tmp_path / name, part, photometric="minisblack")
    demo.main(["--data", str(tmp_path), "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith("unet_isbi2012: ") and "segmented slices 0" in printed
    assert (tmp_path / "segmentation.png").is_file() and (tmp_path / "nuclei.png").is_file()
    # the card's figures, to what a processor's rounding can change
    (at_400,) = re.findall(r"at 400 an image: .* segm_AP (\S+)", printed)
    assert float(at_400) == pytest.approx(keras_seg.zoo.show(demo_nuclei.MODEL).expect.value, abs=0.01)


def test_without_data_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_seg.zoo, "load", lambda recipe: small_model())
    with pytest.raises(
        SystemExit, match=r"demo: .*none.train-volume.tif is not there. .* give that with --data"
    ):
        demo.main(["--data", str(tmp_path / "none"), "--output", str(tmp_path)])
    with pytest.raises(
        FileNotFoundError, match=r"none.instances_val.json is not there. .* that with --nuclei"
    ):
        demo_nuclei.run(small_detector(), tmp_path / "none", tmp_path)


def test_too_short_a_stack(data, tmp_path):
    with pytest.raises(ValueError, match="has 4 slices, the demo takes 20, 21, 22, 23, 24"):
        demo.run(small_model(), data, tmp_path / "out")
