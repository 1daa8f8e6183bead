"""One annotated image to an item: pixels, boxes, masks and keypoints move together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_seg.data import run_lengths
from keras_seg.data.annotated_image import AnnotatedImage
from keras_seg.data.detection_geometry import DetectionAugmentation, Geometry, draw_geometry, vary_colours
from keras_seg.data.detection_items import ItemOptions, make_item, mirrored_keypoints, open_picture
from keras_seg.data.resize import resize
from keras_seg.ops.masks import polygon_targets
from keras_seg.ops.rle import encode_mask

PLAIN = DetectionAugmentation(flip=0.0)


def options(**changes) -> ItemOptions:
    fields = {
        "short_side": None, "max_side": 1333, "augment": PLAIN, "multiple": 1, "min_box_side": 1.0, "bitmaps": True,
        "polygons": True, "keypoint_mirror": [0, 2, 1], "value_range": None,
    }  # fmt: skip
    return ItemOptions(**{**fields, **changes})


def rectangles(
    boxes: list, size: tuple[int, int], file: Path | bytes, *, crowd: bool = False
) -> AnnotatedImage:
    """An image with objects that fill their boxes (whole pixels), each both as polygon and as run lengths; keypoints
    are the box's first corner, the middle of its left and of its right side."""
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    masks = [np.zeros(size, bool) for _ in boxes]
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    strings = [encode_mask(mask)["counts"].encode() for mask in masks]
    x1, y1, x2, y2 = boxes.T
    middle = (y1 + y2) / 2
    return AnnotatedImage(
        name="test",
        file=file,
        image_id=5,
        size=size,
        boxes=boxes,
        classes=np.arange(len(boxes), dtype=np.int32),
        crowd=np.full(len(boxes), crowd),
        ids=np.arange(len(boxes)),
        polygon_points=np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1).reshape(-1, 2),
        polygon_lengths=np.full(len(boxes), 4),
        polygon_objects=np.arange(len(boxes)),
        run_lengths=np.frombuffer(b"".join(strings), np.uint8),
        run_splits=np.cumsum([0, *map(len, strings)]),
        keypoints=np.stack(
            [x1, y1, x1 * 0 + 2, x1, middle, x1 * 0 + 2, x2, middle, x1 * 0 + 1], axis=1
        ).reshape(-1, 3, 3),
    )


def picture_file(folder: Path, boxes: list, size: tuple[int, int]) -> Path:
    """A black image whose objects are white."""
    pixels = np.zeros((*size, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    Image.fromarray(pixels).save(folder / "image.png")
    return folder / "image.png"


def bitmap(item: dict, k: int) -> np.ndarray:
    """bool [H, W] of object k."""
    mask = np.zeros(item["image"].shape[:2], bool)
    start, y, x, height, width = item["mask_windows"][k]
    mask[y : y + height, x : x + width] = item["mask_pixels"][start : start + height * width].reshape(
        height, width
    )
    return mask


def polygons(item: dict, k: int) -> list[np.ndarray]:
    parts = np.split(item["polygon_points"], np.cumsum(item["polygon_lengths"])[:-1])
    return [part for part, owner in zip(parts, item["polygon_objects"], strict=True) if owner == k]


AUGMENTATIONS = st.builds(
    DetectionAugmentation,
    flip=st.sampled_from([0.0, 1.0]),
    turns=st.booleans(),
    zoom=st.sampled_from([(1.0, 1.0), (0.7, 1.6)]),
    crop=st.sampled_from([None, 20, 35]),
)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(24, 50), st.integers(24, 50)),
    corners=st.tuples(*[st.integers(0, 10)] * 2, *[st.integers(12, 24)] * 2),
    short_side=st.sampled_from([None, 40, (20, 60)]),
    augment=AUGMENTATIONS,
    seed=st.integers(0, 2**32),
)
def test_pixels_boxes_masks_and_keypoints_move_together(
    tmp_path_factory, size, corners, short_side, augment, seed
):
    x1, y1, x2, y2 = corners
    boxes = [(x1, y1, x2, y2)]
    file = picture_file(tmp_path_factory.getbasetemp(), boxes, size)
    chosen = options(short_side=short_side, augment=augment)
    item = make_item(rectangles(boxes, size, file), chosen, np.random.default_rng(seed))
    height, width = item["size"].astype(int)
    assert item["image"].shape[:2] == (height, width)
    if not len(item["boxes"]):  # cropped away
        assert augment.crop and item["image"][2:-2, 2:-2].max(initial=0) < 255
        return
    inside = bitmap(item, 0)
    grey = item["image"][..., 0] / 255.0
    # one object, white on black: its mask is where the image is white, to within the blurred edge
    assert np.abs(grey - inside).sum() <= 2.5 * (inside.shape[0] + inside.shape[1])
    assert abs(grey.sum() - inside.sum()) <= 1.0 * (inside.shape[0] + inside.shape[1])
    ys, xs = np.nonzero(inside)
    box = item["boxes"][0]
    np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.01)
    assert box.min() >= 0 and (box[[2, 3]] <= (width, height)).all()
    (polygon,) = polygons(item, 0)
    clipped = np.clip(polygon, 0, (width, height))
    np.testing.assert_allclose([*clipped.min(axis=0), *clipped.max(axis=0)], box, atol=1.01)
    # keypoints that are still in the image lie on the polygon's corner and on the middles of two of its sides
    for place, (x, y, seen) in enumerate(item["keypoints"][0]):
        if seen:
            distance = np.abs(polygon - (x, y))
            assert (distance.sum(axis=1).min() < 1e-3) if place == 0 else (distance.min(axis=0).min() < 1e-3)


def test_a_mirrored_image_has_left_and_right_keypoints_exchanged(tmp_path):
    boxes, size = [(5, 4, 15, 20)], (24, 40)
    annotated = rectangles(boxes, size, picture_file(tmp_path, boxes, size))
    item = make_item(annotated, options(augment=DetectionAugmentation(flip=1.0)), np.random.default_rng(0))
    np.testing.assert_array_equal(item["boxes"], [[25, 4, 35, 20]])
    # the right side's middle, hidden, is now the left one's
    np.testing.assert_array_equal(item["keypoints"][0], [[35, 4, 2], [25, 12, 1], [35, 12, 2]])
    np.testing.assert_array_equal(item["image"], np.asarray(Image.open(annotated.file))[:, ::-1])
    # turned by two right angles, left is left
    turned = Geometry(size, size, (0, 0, *size), mirror_x=True, mirror_y=True)
    assert not turned.reverses and Geometry(size, size, (0, 0, *size), transpose=True).reverses


def test_keypoints_outside_the_crop_are_not_annotated(tmp_path):
    boxes, size = [(0, 0, 40, 24)], (24, 40)
    annotated = rectangles(boxes, size, picture_file(tmp_path, boxes, size))
    augment = DetectionAugmentation(flip=0.0, crop=10)
    item = make_item(annotated, options(augment=augment), np.random.default_rng(3))
    seen = item["keypoints"][0, :, 2] > 0
    assert not seen.all() and (item["keypoints"][0][~seen] == 0).all()


def test_the_pixels_are_detectron2s(shared, tmp_path):
    golden = np.load(shared / "golden/ops/resize.npz")
    image = golden["image_bgr"]
    Image.fromarray(image).save(tmp_path / "crop.png")
    annotated = rectangles([], image.shape[:2], tmp_path / "crop.png")
    for short, longest in ((64, 200), (20, 1000), (53, 60)):
        item = make_item(annotated, options(short_side=short, max_side=longest), np.random.default_rng(0))
        np.testing.assert_array_equal(item["image"], golden[f"short{short}_max{longest}"])


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    new=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 2**32),
)
def test_a_bitmap_is_resized_as_pillow_takes_the_nearest(size, new, seed):
    mask = np.random.default_rng(seed).random(size) < 0.3
    text = encode_mask(mask)["counts"].encode()
    windows = run_lengths.windows(np.frombuffer(text, np.uint8), np.array([0, len(text)]), size[0])
    geometry = Geometry(size, new, (0, 0, *new))
    (y, x), pixels = geometry.of_window(tuple(windows.bounds[0, :2]), windows.bitmap(0), geometry.sources())
    found = np.zeros(new, np.uint8)
    found[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    expected = Image.fromarray(mask.astype(np.uint8)).resize(new[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found, np.asarray(expected))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.sampled_from([0.6, 1.0, 1.7]))
def test_a_crop_is_that_part_of_the_resized_image(seed, scale):
    random = np.random.default_rng(seed)
    size = tuple(random.integers(20, 50, 2).tolist())
    pixels = random.integers(0, 256, (*size, 3), np.uint8)
    resized = tuple(int(side * scale) for side in size)
    y, x = (int(random.integers(0, side // 2)) for side in resized)
    window = (y, x, resized[0] // 2, resized[1] // 2)
    found = np.asarray(Geometry(size, resized, window).of_picture(Image.fromarray(pixels)), np.float32)
    whole = resize(pixels, resized)[y : y + window[2], x : x + window[3]]
    # Pillow's weights are rounded to the crop's own origin: one grey value at most in each of its two passes
    assert np.abs(found - whole).max() <= (2 if scale != 1 else 0)


def test_a_cropped_polygon_gives_the_mask_targets_of_the_whole_one():
    """A polygon is only shifted by a crop, since the mask head's targets are drawn within boxes in the image."""
    polygon = np.array([[3.0, 2], [50, 10], [30, 44], [8, 30]])
    geometry = Geometry((50, 60), (50, 60), (10, 12, 30, 30))
    moved = geometry.of_points(polygon)
    box = np.array([[2.0, 3, 25, 28]])
    there = box + np.array([12, 10, 12, 10])
    np.testing.assert_array_equal(
        polygon_targets([[moved]], box, 28), polygon_targets([[polygon]], there, 28)
    )


def test_the_box_of_a_cut_object_is_that_of_what_is_left(tmp_path):
    """An L: of its box the crop's part is wider than what there is of the object."""
    size = (40, 40)
    Image.new("RGB", (40, 40)).save(tmp_path / "l.png")
    corners = [[2, 2], [10, 2], [10, 30], [38, 30], [38, 38], [2, 38]]
    mask = np.zeros(size, bool)
    mask[2:38, 2:10] = mask[30:38, 2:38] = True
    text = encode_mask(mask)["counts"].encode()
    for runs in (False, True):
        annotated = AnnotatedImage(
            "l", tmp_path / "l.png", 1, size, np.array([[2.0, 2, 38, 38]]), np.zeros(1, np.int32), np.zeros(1, bool),
            np.ones(1, np.int64), np.array(corners, float) if not runs else np.zeros((0, 2)),
            np.array([6] if not runs else [], np.int64), np.array([0] if not runs else [], np.int64),
            np.frombuffer(text if runs else b"", np.uint8), np.array([0, len(text) if runs else 0]), np.zeros((1, 0, 3)),
        )  # fmt: skip
        augment = DetectionAugmentation(flip=0.0, crop=20)
        for seed in range(40):
            random = np.random.default_rng(seed)
            y, x, *_ = draw_geometry(size, None, 1333, augment, np.random.default_rng(seed)).window
            item = make_item(annotated, options(augment=augment, keypoint_mirror=()), random)
            ys, xs = np.nonzero(mask[y : y + 20, x : x + 20])
            if not len(ys):
                assert not len(item["boxes"])
            elif len(item["boxes"]):
                np.testing.assert_allclose(item["boxes"], [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]])


def test_large_scale_jitter_keeps_to_the_square():
    augment = DetectionAugmentation(flip=0.0, large_scale_jitter=(0.1, 2.0), crop=64)
    random = np.random.default_rng(0)
    drawn = [draw_geometry((30, 60), 800, 1333, augment, random) for _ in range(200)]
    assert all(max(g.size) <= 64 for g in drawn)
    widths = np.array([g.resized[1] for g in drawn])
    assert widths.min() >= 6 and widths.max() <= 128 and widths.min() < 15 and widths.max() > 110
    assert all(abs(g.resized[0] * 2 - g.resized[1]) <= 1 for g in drawn)


def test_a_range_of_sizes_is_drawn_from_evenly():
    random = np.random.default_rng(0)
    sides = [min(draw_geometry((30, 60), (20, 24), 1333, PLAIN, random).resized) for _ in range(300)]
    assert set(sides) == {20, 21, 22, 23, 24}


def test_crowds_have_neither_bitmaps_nor_polygons(tmp_path):
    boxes, size = [(5, 4, 15, 20)], (24, 40)
    annotated = rectangles(boxes, size, picture_file(tmp_path, boxes, size), crowd=True)
    item = make_item(annotated, options(), np.random.default_rng(0))
    assert (
        item["crowd"].tolist() == [True] and not item["mask_pixels"].size and not item["polygon_points"].size
    )
    assert item["mask_windows"].tolist() == [[0] * 5]


def test_colours_vary_within_bounds_and_grey_stays_grey():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    augment = DetectionAugmentation(brightness=0.3, contrast=0.3, saturation=0.5, gamma=0.2)
    seen = set()
    for seed in range(5):
        varied = np.asarray(vary_colours(Image.fromarray(pixels), augment, np.random.default_rng(seed)))
        seen.add(varied.tobytes())
    assert len(seen) == 5
    grey = vary_colours(Image.fromarray(pixels[..., 0]), augment, np.random.default_rng(0))
    assert grey.mode == "L"
    same = vary_colours(Image.fromarray(pixels), PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(same), pixels)
    only = DetectionAugmentation(brightness=0.5)
    varied = np.asarray(vary_colours(Image.fromarray(pixels), only, np.random.default_rng(1)), float)
    factor = np.median(varied[pixels > 60] / pixels[pixels > 60])
    np.testing.assert_allclose(varied, np.clip(pixels * factor, 0, 255), atol=1.5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode):
    random = np.random.default_rng(0)
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        pixels = random.integers(0, 65536, (9, 7), np.uint16)
        Image.fromarray(pixels).save(path)
        expected = np.rint(pixels * (255 / 65535))
    else:
        picture = Image.fromarray(random.integers(0, 256, (9, 7, 3), np.uint8)).convert(mode)
        if mode == "CMYK":
            path = path.with_suffix(".jpg")
        picture.save(path)
        expected = np.asarray(Image.open(path).convert("L" if mode in ("1", "L", "LA") else "RGB"))
    opened = open_picture(path, "image")
    assert opened.mode == ("L" if mode in ("1", "L", "LA", "I;16") else "RGB")
    np.testing.assert_array_equal(np.asarray(opened), expected)
    np.testing.assert_array_equal(np.asarray(open_picture(path.read_bytes(), "image")), expected)


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    found = np.asarray(open_picture(tmp_path / "turned.png", "turned"))
    np.testing.assert_array_equal(found, np.rot90(np.asarray(picture), -1))


def test_sixteen_bits_with_a_range_of_values(tmp_path):
    pixels = np.array([[0, 100, 200], [300, 400, 500]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    found = np.asarray(open_picture(tmp_path / "deep.png", "deep", (100, 355)))
    np.testing.assert_array_equal(found, [[0, 0, 100], [200, 255, 255]])


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "empty"), (b"GIF?" * 9, "not an image"), (b"\x89PNG\r\n\x1a\n", "image")]
)
def test_what_is_no_image_is_told(tmp_path, data, message):
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(ValueError, match=rf"^bad: .*{message}"):
        open_picture(tmp_path / "bad.png", "bad")
    with pytest.raises(FileNotFoundError, match="^none: no such file"):
        open_picture(tmp_path / "none.png", "none")


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    boxes = [(5, 4, 15, 20)]
    file = picture_file(tmp_path, boxes, (24, 40))
    with pytest.raises(ValueError, match=r"test: the image has 24x40 pixels .* its annotations say 40x24"):
        make_item(rectangles(boxes, (40, 24), file), options(), np.random.default_rng(0))


def test_keypoints_change_places_by_their_names():
    assert mirrored_keypoints(["nose", "left_eye", "right_eye", "rightHand", "leftHand"]) == [0, 2, 1, 4, 3]
    assert mirrored_keypoints(["tip"]) == [0]
    with pytest.raises(
        ValueError, match="'left_eye' has no 'right_eye' on the other side: give keypoint_mirror"
    ):
        mirrored_keypoints(["nose", "left_eye"])
    with pytest.raises(ValueError, match="no name says left or right"):
        mirrored_keypoints(["a", "b"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"zoom": (0, 1)}, r"zoom: must be \(low, high\) with 0 < low <= high, got \(0, 1\)"),
        ({"large_scale_jitter": (0.1, 2)}, "large_scale_jitter: needs crop"),
        ({"crop": 0}, "crop: must be positive, got 0"),
        ({"flip": 2}, "flip: must lie within 0-1, got 2"),
        ({"gamma": -1}, "gamma: must be 0 or more, got -1"),
    ],
)
def test_options_outside_their_range(fields, message):
    with pytest.raises(ValueError, match=message):
        DetectionAugmentation(**fields)


@pytest.mark.parametrize("mirrored", [0.0, 1.0])
def test_pixels_are_the_same_with_and_without_the_compiled_resize(tmp_path, monkeypatch, mirrored):
    pixels = np.random.default_rng(3).integers(0, 256, (37, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    annotated = rectangles([[3, 4, 20, 30]], (37, 50), tmp_path / "image.png")
    chosen = options(short_side=90, multiple=32, augment=DetectionAugmentation(flip=mirrored))
    expected = np.asarray(Image.fromarray(pixels).resize((122, 90), Image.Resampling.BILINEAR))
    expected = np.pad(expected[:, ::-1] if mirrored else expected, ((0, 6), (0, 6), (0, 0)))
    for setting in ("auto", "off"):
        monkeypatch.setenv("KERAS_SEG_NATIVE", setting)
        found = make_item(annotated, chosen, np.random.default_rng(0))["image"]
        np.testing.assert_array_equal(found, expected)
