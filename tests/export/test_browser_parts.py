"""The browser page's arithmetic, run by Node, against the library's: tiles, resizing, masks, objects, files."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_seg import overlap_tile, visualize
from keras_seg.data.resize import resize
from keras_seg.export.browser_model import TOLERANCES, check_picture
from keras_seg.instances import Instances
from keras_seg.ops import masks as mask_ops
from keras_seg.segment import instances

SCRIPT = Path(__file__).resolve().parents[2] / "export" / "browser" / "test" / "parts.mjs"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="needs Node, which runs the page's JavaScript (Debian: apt install nodejs)"
)

ARRAYS = {
    "Uint8Array": np.uint8,
    "Int32Array": np.int32,
    "Float32Array": np.float32,
    "Float64Array": np.float64,
}
ARRAYS["Uint8ClampedArray"] = np.uint8
NAMES = {np.dtype(dtype): name for name, dtype in reversed(ARRAYS.items())}
NAMES[np.dtype(np.uint8)] = "Uint8Array"


def call(*calls):
    """Results of [(module, function, arguments …), …]; arrays travel flat."""
    message = json.dumps([[module, name, list(args)] for module, name, *args in calls], default=_encoded)
    done = subprocess.run([NODE, SCRIPT], input=message, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, object_hook=_decoded)


def _encoded(value):
    if isinstance(value, bytes):
        return {"type": "ArrayBuffer", "base64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return {"type": NAMES[value.dtype], "base64": base64.b64encode(value.tobytes()).decode()}
    return value.item()


def _decoded(value):
    if set(value) != {"type", "base64"}:
        return value
    return np.frombuffer(base64.b64decode(value["base64"]), ARRAYS[value["type"]])


@pytest.mark.parametrize(
    ("side", "border", "multiple"), [(64, 20, 4), (512, 96, 16), (388, 92, 16), (36, 14, 8)]
)
def test_windows_cover_an_axis_once_with_all_the_context_there_is(side, border, multiple):
    lengths = [1, side - border, side - border + 1, side - 1, side, side + 1, side + multiple, 2 * side, 1000]
    calls = [("tiles", "windows", length, side, border, multiple) for length in lengths]
    for length, windows in zip(lengths, call(*calls), strict=True):
        assert [w["from"] for w in windows] == [0, *(w["to"] for w in windows[:-1])]
        assert windows[-1]["to"] == length
        for window in windows:
            start, stop = window["start"], window["start"] + side
            assert start % multiple == 0
            assert window["from"] < window["to"]
            assert window["from"] == 0 or window["from"] - start >= border
            assert stop - window["to"] >= border or stop == window["to"] == length
        assert len(windows) == 1 or length != side


def test_an_input_too_small_for_windows_is_refused():
    (exact, other) = call(("tiles", "windows", 43, 43, 20, 4), ("tiles", "windows", 44, 43, 20, 4))
    assert exact == [{"start": 0, "from": 0, "to": 43}]
    assert "43 pixels a side is too small" in other["error"]


def test_borders_are_mirrored_as_numpy_reflects():
    random = np.random.default_rng(0)
    cases = []
    for height, width, channels, border in ((7, 5, 1, 3), (3, 2, 3, 9), (1, 4, 1, 6), (9, 8, 3, 0)):
        image = random.integers(0, 256, (height, width, channels), np.uint8)
        cases.append((image, border))
    results = call(
        *(
            ("tiles", "cut", image, {"height": len(image), "width": image.shape[1]}, -border, -border,
             len(image) + 2 * border, image.shape[1] + 2 * border, image.shape[2])
            for image, border in cases
        )
    )  # fmt: skip
    for (image, border), tile in zip(cases, results, strict=True):
        expected = np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(tile.reshape(expected.shape), expected)


def test_tiles_are_turned_as_in_the_library_and_back():
    tile = np.random.default_rng(1).random((1, 6, 6, 2), np.float32)
    turned = call(*(("tiles", "turn", tile, 6, 2, k) for k in range(8)))
    back = call(*(("tiles", "turnBack", values, 6, 2, k) for k, values in enumerate(turned)))
    for k in range(8):
        np.testing.assert_array_equal(turned[k].reshape(6, 6, 2), overlap_tile.turn(tile, k)[0])
        np.testing.assert_array_equal(back[k], tile.ravel())


def test_objects_are_those_of_the_library_numbered_alike():
    random = np.random.default_rng(2)
    images = [random.random(shape, np.float32) for shape in ((1, 1), (1, 9), (9, 1), (40, 31), (64, 64))]
    # spirals and combs: components that meet late
    comb = np.zeros((9, 12), np.float32)
    comb[:, ::2], comb[-1] = 0.9, 0.9
    images += [comb, comb[::-1].copy(), np.kron(random.random((8, 8)), np.ones((5, 5))).astype(np.float32)]
    calls = [("components", "components", i, i.shape[1], i.shape[0], t) for i in images for t in (0.3, 0.5)]
    results = iter(call(*calls))
    for image in images:
        for threshold in (0.3, 0.5):
            expected, found = instances(image, threshold), next(results)
            np.testing.assert_array_equal(found["labels"].reshape(image.shape), expected)
            assert found["count"] == expected.max()


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_masks_are_pasted_as_in_the_library(convention):
    random = np.random.default_rng(3)
    sides = {"height": 50, "width": 70}
    boxes = np.concatenate([random.uniform(-20, 60, (60, 2)), random.uniform(0, 60, (60, 2))], 1).astype(
        np.float32
    )
    boxes[:, 2:] += boxes[:, :2]
    boxes[-4:] = [(5, 5, 5, 9), (8, 8, 4, 4), (np.nan, 1, 5, 5), (0, 0, 70, 50)]
    masks = random.random((60, 14, 14), np.float32)
    masks[0, 3, 4] = np.nan
    calls = [
        ("masks", "pasteWindow", m, 14, box, sides, convention, 0.5)
        for m, box in zip(masks, boxes, strict=True)
    ]
    pasted = np.zeros((60, 50, 70), bool)
    windows = call(*calls)
    for target, w in zip(pasted, windows, strict=True):
        inside = w["inside"].reshape(w["height"], w["width"])
        target[w["top"] : w["top"] + w["height"], w["left"] : w["left"] + w["width"]] = inside
    expected = mask_ops.paste(masks, boxes, (50, 70), 0.5, convention)
    assert expected.sum() > 5000
    np.testing.assert_array_equal(pasted, expected)

    runs = call(*(("masks", "runLengths", w | {"inside": w["inside"]}, sides) for w in windows))
    for mask, rle in zip(expected, runs, strict=True):
        values = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
        assert rle["size"] == [50, 70]
        np.testing.assert_array_equal(values.reshape(70, 50).T, mask)


@pytest.mark.parametrize("convention", ["detectron2", "torchvision"])
def test_images_are_resized_as_in_the_library(convention):
    random = np.random.default_rng(4)
    cases = [
        ((20, 30), (30, 45)),
        ((21, 33), (32, 50)),
        ((64, 48), (32, 24)),
        ((91, 60), (30, 20)),
        ((1, 3), (2, 5)),
        ((7, 7), (7, 7)),
    ]
    images = [random.integers(0, 256, (*before, 3), np.uint8) for before, _ in cases]
    sides = [[dict(zip(("height", "width"), size, strict=True)) for size in case] for case in cases]
    calls = [
        ("resize", "resize", image, *pair, convention) for image, pair in zip(images, sides, strict=True)
    ]
    for image, (_, after), found in zip(images, cases, call(*calls), strict=True):
        expected = resize(image, after, convention)
        if convention == "detectron2":
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
        else:  # the page rounds to 8 bits, the library does not
            assert np.abs(found.reshape(expected.shape) - expected).max() <= 0.5 + 1e-4


def test_a_scaled_side_is_rounded_as_in_python():
    lengths = list(range(1, 40))
    calls = [("detector", "resizedSize", {"height": n, "width": n}, {}, {"scale": 1.5}) for n in lengths]
    assert [size["height"] for size in call(*calls)] == [round(n * 1.5) for n in lengths]


def test_an_image_of_another_shape_is_made_to_fit():
    window = {"height": 300, "width": 400}
    (wide, tall, small) = call(
        ("detector", "resizedSize", {"height": 100, "width": 1000}, window, {}),
        ("detector", "resizedSize", {"height": 900, "width": 600}, window, {}),
        ("detector", "resizedSize", {"height": 30, "width": 40}, window, {}),
    )
    assert wide == {"height": 40, "width": 400}
    assert tall == {"height": 300, "width": 200}
    assert small == {"height": 300, "width": 400}


def test_windows_reach_from_end_to_end_and_overlap_by_a_quarter():
    lengths = [1, 383, 384, 385, 480, 672, 673, 1000, 3000]
    for length, starts in zip(lengths, call(*(("detector", "starts", n, 384) for n in lengths)), strict=True):
        assert starts[0] == 0
        assert starts[-1] == max(0, length - 384)
        assert all(b - a <= 0.75 * 384 + 1 for a, b in itertools.pairwise(starts))
        assert len(starts) == 1 or length > 384


def test_an_object_seen_twice_is_kept_once():
    def found(box, score, cut=False, kind=0):
        return {"box": box, "score": score, "class": kind, "cut": cut}

    whole, shifted = found([10, 10, 30, 30], 0.8), found([11, 10, 31, 30], 0.7)
    part = found([10, 10, 20, 30], 0.99, cut=True)  # of `whole`: inside it, though less than half of it
    other_class, apart = found([10, 10, 30, 30], 0.6, kind=1), found([40, 10, 60, 30], 0.9)
    lonely = found(
        [0, 50, 5, 60], 0.5, cut=True
    )  # cut in every window, as what is larger than the overlap is
    (kept,) = call(("detector", "withoutDoubles", [part, shifted, whole, other_class, lonely, apart]))
    assert kept == [apart, whole, other_class, lonely]


def test_numbers_are_saved_as_numpy_reads_them():
    values = np.random.default_rng(5).random((3, 4, 2), np.float32)
    (file,) = call(("npy", "npy", values, [3, 4, 2]))
    np.testing.assert_array_equal(np.load(io.BytesIO(file.tobytes())), values)


def test_objects_have_the_colours_that_they_have_in_python():
    found = np.array(call(*(("overlay", "colour", k) for k in range(1, 44))))
    assert (
        np.abs(found - visualize.colours(np.arange(1, 44)).astype(int)).max() <= 1
    )  # halves are rounded otherwise


def test_of_overlapping_objects_the_better_one_is_drawn():
    windows = [
        {"top": 0, "left": 0, "height": 2, "width": 2, "inside": np.uint8([1, 1, 0, 1])},
        {"top": 0, "left": 1, "height": 2, "width": 2, "inside": np.uint8([1, 1, 1, 1])},
    ]
    (labels,) = call(("overlay", "labelsOfWindows", windows, 3, 2))
    np.testing.assert_array_equal(labels.reshape(2, 3), [[1, 1, 2], [0, 1, 2]])


def test_grey_is_luma_and_grey_images_keep_their_values():
    rgba = np.uint8([[10, 10, 10, 255], [255, 0, 0, 255], [0, 255, 0, 0], [1, 2, 3, 9]])
    grey, colours = call(
        *(("channels", "channelsOf", rgba, channels, {"constructor": "Uint8Array"}) for channels in (1, 3))
    )
    np.testing.assert_array_equal(grey, [10, 76, 150, 2])
    np.testing.assert_array_equal(colours, rgba[:, :3].ravel())


# -- whole pictures --------------------------------------------------------------------------------------------

NOTHING = {"stand_in": "nothing"}


@pytest.mark.parametrize("versions", [1, 7])
def test_each_pixel_of_a_picture_gets_its_own_probabilities(versions):
    """Through windows, mirrored borders and turns, with a network that sees one pixel at a time."""
    random = np.random.default_rng(9)
    model = {"border": 8, "multiple": 4, "classes": ["no", "yes"]}
    network = {"stand_in": "pixelwise", "height": 24, "width": 24, "channels": 1}
    sides = [(24, 24), (50, 61), (7, 100), (1, 3)]
    grey = [random.integers(0, 256, size, np.uint8) for size in sides]
    pictures = [_as_picture(np.repeat(g[..., None], 3, 2)) for g in grey]
    calls = [("unet", "runUnet", p, network, model, {"versions": versions}, NOTHING) for p in pictures]
    for pixels, found in zip(grey, call(*calls), strict=True):
        probabilities = found["probabilities"].reshape(*pixels.shape, 2)
        np.testing.assert_allclose(probabilities[..., 1], pixels / 255, atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)


def test_a_picture_of_one_colour_is_refused():
    network = {"stand_in": "pixelwise", "height": 8, "width": 8, "channels": 1}
    flat = _as_picture(np.full((5, 5, 3), 9, np.uint8))
    (found,) = call(("unet", "runUnet", flat, network, {"classes": ["a", "b"]}, {}, NOTHING))
    assert found["error"] == "Every pixel of this image is alike: there is nothing to see in it."


def _as_picture(pixels):
    height, width = pixels.shape[:2]
    rgba = np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], 2)
    return {"name": "picture.png", "width": width, "height": height, "rgba": rgba}


def _outputs(boxes, scores, classes, masks):
    """Of a TensorFlow Lite file, with room for two more objects."""
    count, room = len(boxes), len(boxes) + 2
    padded = [
        np.concatenate([a, np.zeros((2, *a.shape[1:]), a.dtype)]) for a in (boxes, scores, classes, masks)
    ]
    shapes = [(1, room, 4), (1, room), (1, room), (1, room, *masks.shape[1:])]
    named = zip(("boxes", "scores", "classes", "masks"), padded, shapes, strict=True)
    outputs = {name: {"values": values, "shape": shape} for name, values, shape in named}
    return outputs | {"num_detections": {"values": np.int32([count]), "shape": [1]}}


def _found(seed=10):
    """Three objects in an input of 48 x 64 pixels, whose picture has 32 x 40 and is enlarged by 1.5."""
    random = np.random.default_rng(seed)
    boxes = np.float32([[3, 4.5, 20, 30], [30, 6, 59, 40], [10, 20, 30, 45]])
    scores, classes = np.float32([0.9, 0.75, 0.25]), np.int32([0, 1, 1])
    masks = np.clip(random.random((3, 14, 14), np.float32) + 0.2, 0, 1)
    return boxes, scores, classes, masks


def test_a_detectors_objects_are_drawn_told_and_saved_as_in_python():
    boxes, scores, classes, masks = _found()
    model = {
        "name": "detector", "kind": "detector", "scale": 1.5, "convention": "detectron2", "fill": [124, 116, 104],
        "classes": ["cell", "vessel"],
    }  # fmt: skip
    picture = _as_picture(np.random.default_rng(11).integers(0, 256, (32, 40, 3), np.uint8))
    network = {
        "stand_in": "answering",
        "height": 64,
        "width": 64,
        "answers": [_outputs(boxes, scores, classes, masks)],
    }
    (numbers,) = call(("detector", "runDetector", picture, network, model, {}, NOTHING))
    expected = Instances(boxes / np.float32(1.5), scores, classes, (32, 40), masks)
    np.testing.assert_allclose(numbers["boxes"].reshape(-1, 4), expected.boxes, atol=1e-5)
    np.testing.assert_array_equal(numbers["scores"], scores)
    choices = {"view": "objects", "threshold": 0.5, "opacity": 1}
    (shown, none) = call(
        ("test", "shown", model, picture, numbers, choices),
        ("test", "shown", model, picture, numbers, choices | {"threshold": 0.95}),
    )
    assert (
        shown["summary"] == "1 × cell, 1 × vessel"
        and none["summary"] == "Nothing with a score of 0.95 or more"
    )
    assert (shown["boxes"], shown["texts"], none["boxes"]) == (2, [" cell 0.90 ", " vessel 0.75 "], 0)
    saved = json.loads(shown["saved"].tobytes())
    assert (saved["model"], saved["image"], saved["width"], saved["height"]) == (
        "detector",
        "picture.png",
        40,
        32,
    )
    for one, object in zip(saved["detections"], expected[:2], strict=True):
        assert (one["name"], one["score"]) == (model["classes"][one["class"]], object.scores[0])
        counts = one["segmentation"]["counts"]
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(40, 32).T
        assert (mask != object.masks[0]).mean() < 0.002 and mask.sum() > 50  # halves may be rounded otherwise
    pixels = shown["pixels"].reshape(32, 40, 4)[..., :3]
    inside = expected.masks[:2].any(0)
    np.testing.assert_array_equal(pixels[~inside], picture["rgba"][..., :3][~inside])
    assert (pixels[inside] != picture["rgba"][..., :3][inside]).any(-1).mean() > 0.98


def test_an_object_in_two_windows_is_found_once_where_it_lies():
    """A picture of 64 x 112 pixels, in windows of 64 that start at 0 and 48."""
    random = np.random.default_rng(12)
    masks = random.random((1, 14, 14), np.float32)
    left = _outputs(np.float32([[50, 10, 64, 30]]), np.float32([0.6]), np.int32([0]), masks)  # cut off
    right = _outputs(np.float32([[2.5, 10, 20, 30]]), np.float32([0.7]), np.int32([0]), masks)
    network = {"stand_in": "answering", "height": 64, "width": 64, "answers": [left, right]}
    model = {"scale": 1.0, "convention": "detectron2", "fill": [0, 0, 0], "classes": ["cell"]}
    picture = _as_picture(random.integers(0, 256, (64, 112, 3), np.uint8))
    (found,) = call(("detector", "runDetector", picture, network, model, {}, NOTHING))
    np.testing.assert_allclose(found["boxes"], [50.5, 10, 68, 30], atol=1e-5)
    np.testing.assert_array_equal(found["scores"], np.float32([0.7]))


def test_a_unets_result_is_drawn_told_and_saved():
    random = np.random.default_rng(13)
    probability = np.kron(random.random((4, 5)), np.ones((6, 6))).astype(np.float32)
    probabilities = np.stack([1 - probability, probability], -1)
    model = {"name": "net", "kind": "unet", "classes": ["membrane", "cell"]}
    picture = _as_picture(random.integers(0, 256, (24, 30, 3), np.uint8))
    numbers, choices = {"probabilities": probabilities}, {"threshold": 0.5, "opacity": 0.5, "objectClass": 1}
    views = call(
        *(
            ("test", "shown", model, picture, numbers, choices | {"view": v})
            for v in ("image", "probability", "objects")
        )
    )
    image, grey, objects = (view["pixels"].reshape(24, 30, 4) for view in views)
    np.testing.assert_array_equal(image, picture["rgba"])
    assert np.abs(grey[..., 0] - 255 * probability.astype(float)).max() <= 1
    labels = instances(probability)
    np.testing.assert_array_equal((objects != image).any(-1) & (labels == 0), False)
    share = round(100 * (labels > 0).mean())
    assert views[0]["summary"] == f"{labels.max()} × cell, {share} % of the image"
    np.testing.assert_array_equal(np.load(io.BytesIO(views[0]["saved"].tobytes())), probabilities)


# -- the page's check of itself ---------------------------------------------------------------------------------


def test_the_picture_of_the_check_is_that_of_python():
    sizes = [(384, 384, 3), (512, 512, 1), (37, 90, 3)]
    for size, found in zip(
        sizes, call(*(("selfcheck", "checkPicture", *size) for size in sizes)), strict=True
    ):
        np.testing.assert_array_equal(found.reshape(size), check_picture(*size))


def test_other_numbers_are_noticed():
    boxes, scores, classes, masks = _found()
    objects = [
        {"box": box.tolist(), "score": float(score), "class": int(kind), "mask": float(mask.mean())}
        for box, score, kind, mask in zip(boxes, scores, classes, masks, strict=True)
    ]
    check = {"count": 3, "objects": objects, "tolerances": TOLERANCES[False]}
    order = [2, 0, 1]  # equal scores may change places
    cases = [
        (_outputs(boxes[order], scores[order], classes[order], masks[order]), 1),
        (_outputs(boxes + np.float32(0.5), scores, classes, masks), 1),
        (_outputs(boxes + np.float32([[0], [0], [9]]), scores, classes, masks), 2 / 3),
        (_outputs(boxes, scores, 1 - classes, masks), 0),
        (_outputs(boxes, scores, classes, 1 - masks), 0),
        (_outputs(boxes, scores * np.float32(np.nan), classes, masks), 0),
        (_outputs(boxes[:1], scores[:1], classes[:1], masks[:1]), 1 / 3),
        (_outputs(*(np.repeat(a, 3, 0) for a in (boxes, scores, classes, masks))), 1 / 3),
    ]
    results = call(*(("selfcheck", "shareOfAnswers", outputs, check) for outputs, _ in cases))
    assert results == pytest.approx([share for _, share in cases])
    network = {"stand_in": "answering", "height": 48, "width": 64, "answers": [cases[3][0]]}
    (good, bad) = call(
        ("selfcheck", "checkNetwork", network | {"answers": [cases[0][0]]}, {"check": check}),
        ("selfcheck", "checkNetwork", network, {"check": check}),
    )
    assert good is None
    assert bad["error"].startswith(
        "In this browser the model gives other numbers than in Python (0 % are the same)"
    )


def test_other_probabilities_are_noticed():
    network = {"stand_in": "pixelwise", "height": 32, "width": 32, "channels": 1}
    picture = check_picture(32, 32, 1)[..., 0].ravel() / 255
    values = np.stack([1 - picture, picture], -1).ravel()[::3]
    check = {"step": 3, "probabilities": values.tolist(), "tolerances": TOLERANCES[False]}
    (good, bad) = call(
        ("selfcheck", "checkNetwork", network, {"check": check}),
        ("selfcheck", "checkNetwork", network, {"check": check | {"probabilities": values[::-1].tolist()}}),
    )
    assert good is None and "other numbers than in Python" in bad["error"]


# -- TIFF ------------------------------------------------------------------------------------------------------


def _tiff(array, mode=None, **options):
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "TIFF", **options)
    return file.getvalue()


def test_tiff_files_are_read_as_pillow_reads_them():
    random = np.random.default_rng(6)
    grey, colour = random.integers(0, 256, (13, 9), np.uint8), random.integers(0, 256, (5, 7, 3), np.uint8)
    flat = np.repeat(np.uint8([[3, 200]]), [5, 300], axis=1).repeat(4, axis=0)  # long runs
    deep = random.integers(0, 65536, (6, 4), np.uint16)
    files = [_tiff(grey), _tiff(colour), _tiff(flat, compression="packbits"), _tiff(deep)]
    files.append(_big_endian(deep))
    expected = [np.repeat(grey[..., None], 3, 2), colour, np.repeat(flat[..., None], 3, 2)]
    expected += 2 * [np.repeat(np.rint(deep * (255 / 65535)).astype(np.uint8)[..., None], 3, 2)]
    results = call(*(("tiff", "decodeTiff", file) for file in files))
    for found, pixels in zip(results, expected, strict=True):
        assert (found["height"], found["width"]) == pixels.shape[:2]
        rgba = found["rgba"].reshape(*pixels.shape[:2], 4)
        np.testing.assert_array_equal(rgba[..., :3], pixels)
        assert (rgba[..., 3] == 255).all()


def _big_endian(deep):
    """A TIFF file worked out by hand: header, one directory of 8 entries, pixels."""
    entries = [
        (256, deep.shape[1]),
        (257, deep.shape[0]),
        (258, 16),
        (259, 1),
        (262, 1),
        (273, 110),
        (278, deep.shape[0]),
    ]
    entries.append((279, deep.nbytes))
    directory = b"".join(
        tag.to_bytes(2, "big") + (4).to_bytes(2, "big") + (1).to_bytes(4, "big") + value.to_bytes(4, "big")
        for tag, value in entries
    )
    head = b"MM\0*" + (8).to_bytes(4, "big") + len(entries).to_bytes(2, "big") + directory + bytes(4)
    assert len(head) == 110
    return head + deep.astype(">u2").tobytes()


def test_tiff_files_that_are_not_read_say_why():
    random = np.random.default_rng(7)
    grey = random.integers(0, 256, (30, 20), np.uint8)
    cases = [
        (_tiff(grey, compression="tiff_lzw"), "compressed"),
        (_tiff(grey.astype(np.float32)), "8 or 16 bits"),
        (_tiff(grey, "L")[:300], "damaged|cut off"),
        (b"II*\0" + (10**6).to_bytes(4, "little"), "damaged"),
        (_tiff(grey > 99), "8 or 16 bits"),
    ]
    for (_, words), found in zip(
        cases, call(*(("tiff", "decodeTiff", file) for file, _ in cases)), strict=True
    ):
        assert any(word in found["error"] for word in words.split("|")), found


def test_damaged_tiff_files_never_end_the_page():
    """Random changes of a good file: either pixels or a message."""
    random = np.random.default_rng(8)
    good = bytearray(_tiff(random.integers(0, 256, (8, 6), np.uint8), compression="packbits"))
    files = []
    for _ in range(300):
        file = bytearray(good[: random.integers(8, len(good) + 1)] if random.random() < 0.3 else good)
        for place in random.integers(4, len(file), 3):
            file[place] = random.integers(256)
        files.append(bytes(file))
    for found in call(*(("tiff", "decodeTiff", file) for file in files)):
        if "error" in found:
            assert "TIFF" in found["error"], found
        else:
            assert found["rgba"].size == 4 * found["width"] * found["height"]
