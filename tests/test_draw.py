"""`visualize.draw`: where the strokes of detections fall, in which colours, and what is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from keras_seg.instances import Instances
from keras_seg.ops.masks import polygon_targets
from keras_seg.visualize import colours, draw

NOTHING = {"masks": False, "boxes": False, "labels": False, "keypoints": False}
GREY = np.full((120, 160, 3), 128, np.uint8)


def found(boxes, size=(120, 160), *, scores=None, classes=None, **fields) -> Instances:
    """Instances in boxes, all of class 0, by falling score."""
    scores = np.linspace(0.9, 0.5, len(boxes)) if scores is None else scores
    classes = [0] * len(boxes) if classes is None else classes
    return Instances(np.reshape(boxes, (-1, 4)), scores, classes, size, **fields)


def drawn(instances: Instances, image=GREY, *only: str, **options) -> np.ndarray:
    """The picture with `only` these parts of the drawing, int [H, W, 3]."""
    return np.asarray(draw(image, instances, **{**NOTHING, **dict.fromkeys(only, True)}, **options)).astype(
        int
    )


def changed(instances: Instances, *only: str, image=GREY, **options) -> np.ndarray:
    """bool [H, W]: the pixels that drawing changes."""
    return (drawn(instances, image, *only, **options) != image).any(axis=-1)


def extent(where: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of what is true."""
    (rows, columns) = np.nonzero(where)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def full(n: int) -> np.ndarray:
    return np.ones((n, 4, 4), np.float32)


# -- masks and boxes -------------------------------------------------------------------------------------------


def test_mask_is_filled_and_outlined():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (300, 640, 3), dtype=np.uint8)  # lines are a pixel wide
    blob = np.zeros((1, 8, 8), np.float32)
    blob[0, 1:7, 2:6] = 1
    one = found([[50, 40, 450, 260]], (300, 640), mask_probabilities=blob)
    result, inside, colour = (
        drawn(one, image, "masks", alpha=0.25),
        one.masks[0],
        colours(np.array(1)).astype(int),
    )
    np.testing.assert_array_equal(result[~inside], image[~inside])
    core = ndimage.binary_erosion(inside, np.ones((3, 3)))
    assert core.sum() > 10_000
    assert (result[inside & ~core] == colour).all()
    assert np.abs(result[core] - (0.75 * image + 0.25 * colour)[core]).max() <= 1


def test_mask_alpha():
    one = found([[20, 20, 100, 100]], mask_probabilities=full(1))
    clear, solid = drawn(one, GREY, "masks", alpha=0), drawn(one, GREY, "masks", alpha=1)
    assert (clear[60, 60] == 128).all() and (clear[60, 20] == colours(np.array(1))).all()
    assert (solid[one.masks[0]] == colours(np.array(1))).all()


def test_outline_goes_on_beyond_the_image():
    one = found([[-50, -50, 300, 300]], mask_probabilities=np.ones((1, 28, 28), np.float32))
    result = drawn(one, GREY, "masks")
    assert (result == result[60, 80]).all() and (result[0, 0] != 128).any()


def test_small_objects_and_high_scores_lie_on_top():
    boxes = [[10, 10, 150, 110], [40, 40, 90, 90], [40, 40, 90, 90]]
    both = found(boxes, scores=[0.9, 0.6, 0.8], mask_probabilities=full(3))
    result, small = drawn(both, GREY, "masks"), drawn(both[2], GREY, "masks", by="class")
    # the object of rank 2 covers the large one, of rank 1, and its equal, of rank 3; nothing shines through
    expected = 0.55 * 128 + 0.45 * colours(np.array(2)).astype(float)
    assert np.abs(result[60, 60] - expected).max() <= 1
    # through one mask as much of the image is seen as through several
    alone = 0.55 * 128 + 0.45 * colours(np.array(1)).astype(float)
    assert np.abs(small[60, 60] - alone).max() <= 1 and np.abs(result[20, 20] - alone).max() <= 1


def test_box_is_outlined():
    where = changed(found([[20.2, 30.4, 99.8, 80.6]]), "boxes")
    expected = np.zeros_like(where)
    expected[30:81, 20:100] = True
    expected[31:80, 21:99] = False
    np.testing.assert_array_equal(where, expected)


@pytest.mark.parametrize(
    "box",
    [
        [-90, 20, -3, 70],
        [200, 20, 300, 70],
        [50, 50, 50, 90],
        [90, 50, 40, 90],
        [np.nan, 0, 9, 9],
        [0, 0, np.inf, 9],
    ],
)
def test_boxes_that_are_nowhere_are_left_out(box):
    fields = {"mask_probabilities": full(2), "keypoints": np.full((2, 3, 3), 9.0)}
    both = found([box, [20, 20, 60, 60]], scores=[0.5, 0.9], **fields)
    np.testing.assert_array_equal(draw(GREY, both), draw(GREY, both[1]))
    np.testing.assert_array_equal(draw(GREY, both[0]), GREY)


def test_box_beyond_the_image_is_drawn_at_its_border():
    where = changed(found([[-40, 30, 300, 400]]), "boxes")
    assert where[30].all() and where[30:, 0].all() and where[-1].all() and where[30:, -1].all()


# -- colours ---------------------------------------------------------------------------------------------------


def street() -> Instances:
    boxes = [[10, 50, 40, 110], [30, 45, 70, 115], [80, 60, 110, 110], [100, 40, 150, 100]]
    keypoints = np.dstack((np.array(boxes)[:, [0, 2]], np.array(boxes)[:, [1, 3]], np.ones((4, 2))))
    fields = {"mask_probabilities": full(4), "keypoints": keypoints, "class_names": ["person", "car"]}
    return found(boxes, classes=[0, 1, 1, 0], **fields)


@pytest.mark.parametrize("by", ["instance", "class"])
@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.7, 0.6], [0.7, 0.7, 0.7, 0.7]])
def test_order_does_not_matter(by, scores):
    objects = street()
    objects = Instances(objects.boxes, scores, objects.classes, (120, 160), objects.mask_probabilities)
    options = {"by": by, "skeleton": [(0, 1)]}
    np.testing.assert_array_equal(
        draw(GREY, objects, **options), draw(GREY, objects[[2, 0, 3, 1]], **options)
    )


def test_colour_of_an_instance_survives_a_higher_threshold():
    objects = street()
    all_four, two = drawn(objects, GREY, "boxes"), drawn(objects.filter(score_threshold=0.75), GREY, "boxes")
    remains = (two != 128).any(axis=-1)
    np.testing.assert_array_equal(all_four[remains], two[remains])
    corners = all_four[[50, 45, 60, 40], [10, 69, 80, 149]]
    np.testing.assert_array_equal(corners, colours(np.arange(1, 5)))


def test_colour_of_a_class_is_the_same_everywhere():
    objects = street()
    result = drawn(objects, GREY, "boxes", by="class")
    corners = result[[50, 45, 60, 40], [10, 69, 80, 149]]
    np.testing.assert_array_equal(corners, colours(np.array([1, 2, 2, 1])))
    other = drawn(found([[5, 5, 50, 50]], classes=[1]), GREY, "boxes", by="class")
    np.testing.assert_array_equal(other[5, 5], corners[1])
    cars = drawn(objects.filter(classes="car"), GREY, "boxes", by="class")
    assert (cars[45, 69] == corners[1]).all() and (cars[50, 10] == 128).all()


# -- labels ----------------------------------------------------------------------------------------------------


def test_labels_stay_inside_the_image():
    def label_size(box):
        x1, y1, x2, y2 = extent(changed(found([box], class_names=["pedestrian"]), "labels"))
        return x2 - x1, y2 - y1

    whole = label_size([30, 60, 120, 100])
    for box in (
        [0, 0, 30, 120],
        [130, 0, 160, 120],
        [0, 90, 160, 120],
        [150, 110, 160, 120],
        [-9, -9, 170, 130],
    ):
        assert label_size(box) == whole


def test_label_stands_on_its_box():
    x1, _, _, y2 = extent(changed(found([[30, 60, 120, 100]]), "labels"))
    assert (x1, y2) == (30, 60)


def test_labels_do_not_overlap():
    boxes = [[30, 40, 120, 100]] * 4
    result = drawn(found(boxes), GREY, "labels")
    for rank in range(1, 5):
        x1, y1, x2, y2 = extent((result == colours(np.array(rank))).all(axis=-1))
        part = result[y1:y2, x1:x2]
        # anti-aliased black letters on one colour: nothing of another label
        share = part / colours(np.array(rank)).astype(float).clip(1)
        assert np.ptp(share[..., colours(np.array(rank)) > 60], axis=-1).max() < 0.05


def test_among_many_small_objects_labels_are_left_out():
    y, x = (axis.ravel() for axis in np.mgrid[2:118:8, 2:158:8])
    many = found(np.stack([x, y, x + 6, y + 6], axis=1))
    assert not changed(many, "labels").any()
    few = found([[20, 40, 26, 46], [100, 40, 106, 46]])
    assert changed(few, "labels").sum() > 2 * 50 * 10


def test_names_too_long_are_cut():
    image = np.full((80, 100, 3), 128, np.uint8)
    one = found([[10, 30, 90, 78]], (80, 100), class_names=["an object\nwith a name of many letters"])
    x1, y1, x2, y2 = extent(changed(one, "labels", image=image))
    assert x2 - x1 > 80 and y2 - y1 < 20
    tiny = found([[0, 0, 5, 5]], (6, 6))
    assert not changed(tiny, "labels", image=image[:6, :6]).any()


def test_letters_beyond_ascii():
    pictures = {
        draw(GREY, found([[30, 60, 120, 100]], class_names=[n])).tobytes() for n in ("é", "ж", "λ", "ø")
    }
    assert len(pictures) == 4


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    corners=st.lists(st.tuples(*[st.floats(-60, 200, width=32)] * 4), max_size=6),
)
def test_any_box_in_any_image(height, width, corners):
    image = np.full((height, width, 3), 128, np.uint8)
    points = np.array(corners, np.float32).reshape(-1, 1, 4)[..., :3]
    objects = found(corners, (height, width), mask_probabilities=full(len(corners)), keypoints=points)
    result = np.asarray(draw(image, objects))
    assert result.shape == image.shape
    boxes = objects.boxes
    low, high = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], (width, height))
    if not (low < high).all(axis=1).any():
        assert (result == 128).all()
    else:
        assert (result != 128).any()


# -- keypoints -------------------------------------------------------------------------------------------------


def person(score=1.0) -> Instances:
    """17 keypoints on a circle in a box of the whole image."""
    angle = np.linspace(0, 2 * np.pi, 17, endpoint=False)
    points = np.stack([80 + 60 * np.cos(angle), 60 + 50 * np.sin(angle), np.full(17, score)], axis=-1)
    return found([[5, 5, 155, 115]], keypoints=points[None])


def is_near(where: np.ndarray, x: float, y: float) -> bool:
    return bool(where[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].any())


def test_person_has_cocos_skeleton(shared):
    annotations = json.loads((shared / "data/coco_people/person_keypoints_val2017.json").read_text())
    pairs = np.array(annotations["categories"][0]["skeleton"]) - 1
    np.testing.assert_array_equal(
        draw(GREY, person()), draw(GREY, person(), skeleton=sorted(pairs.tolist(), reverse=True))
    )
    assert changed(person(), "keypoints").sum() > changed(person(), "keypoints", skeleton=[]).sum() + 1000


def test_a_limb_joins_a_pair():
    points = np.array([[[40, 30, 1], [120, 30, 1], [40, 90, 1], [120, 90, 1]]], float)
    objects = found([[5, 5, 155, 115]], keypoints=points)
    assert not is_near(changed(objects, "keypoints"), 80, 30)  # 4 keypoints: no person's
    where = changed(objects, "keypoints", skeleton=[(0, 1), (2, 0)])
    assert all(is_near(where, x, y) for x, y in ((80, 30), (40, 60), (120, 90)))
    assert not any(is_near(where, x, y) for x, y in ((80, 90), (120, 60)))


def test_keypoints_are_drawn_where_they_are():
    objects = found([[0, 0, 160, 120]], keypoints=[[[60.5, 40.5, 1]]])
    x1, y1, x2, y2 = extent(changed(objects, "keypoints"))
    assert (x1 + x2) / 2 == 60.5 and (y1 + y2) / 2 == 40.5 and 3 <= x2 - x1 <= 9


def test_keypoints_below_the_threshold_are_not_drawn():
    base = [[40, 30, 0.9], [120, 30, 0.2], [80, 90, 0.9]]
    objects, pairs = found([[5, 5, 155, 115]], keypoints=[base]), [(0, 1), (0, 2)]
    where = changed(objects, "keypoints", skeleton=pairs, keypoint_threshold=0.5)
    assert is_near(where, 40, 30) and is_near(where, 60, 60) and not where[:, 100:].any()
    everything = changed(objects, "keypoints", skeleton=pairs, keypoint_threshold=0.2)
    assert is_near(everything, 120, 30) and is_near(everything, 80, 30)


@pytest.mark.parametrize(
    "bad", [[120, 30, 0], [120, 30, np.nan], [np.nan, 30, 1], [120, -1, 1], [1e9, 30, 1]]
)
def test_keypoints_that_are_nowhere_are_never_drawn(bad):
    objects = found([[5, 5, 155, 115]], keypoints=[[[40, 30, 0.9], bad]])
    where = changed(objects, "keypoints", skeleton=[(0, 1)], keypoint_threshold=-1e9)
    assert is_near(where, 40, 30) and not where[:, 60:].any()


# -- the picture -----------------------------------------------------------------------------------------------


def test_nothing_found_and_nothing_to_draw():
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    none = found([], mask_probabilities=full(0), keypoints=np.zeros((0, 17, 3)))
    for instances, options in ((none, {}), (found([]), {}), (street(), NOTHING)):
        result = draw(image, instances, **options)
        assert result.mode == "RGB"
        np.testing.assert_array_equal(result, image)


def test_each_part_can_be_switched_off():
    objects = street()
    parts = [changed(objects, part) for part in NOTHING]
    assert all(part.any() for part in parts)
    np.testing.assert_array_equal(changed(objects, *NOTHING), np.any(parts, axis=0))
    np.testing.assert_array_equal(draw(GREY, objects), drawn(objects, GREY, *NOTHING))


def test_given_image_is_not_changed():
    image = Image.fromarray(GREY)
    draw(image, street())
    np.testing.assert_array_equal(image, GREY)


def test_kinds_of_images(tmp_path):
    ramp = np.arange(160, dtype=np.uint8)[None].repeat(120, axis=0)
    rgb = np.repeat(ramp[..., None], 3, axis=-1)
    Image.fromarray(rgb).save(tmp_path / "image.png")
    expected = np.asarray(draw(rgb, street()))
    for image in (
        ramp,
        np.dstack((rgb, ramp)),
        tmp_path / "image.png",
        Image.fromarray(ramp),
        rgb.astype(float),
    ):
        np.testing.assert_array_equal(draw(image, street()), expected)
    deep = draw(ramp.astype(np.uint16) * 400, street())  # stretched: black to white
    assert deep.getpixel((0, 0)) == (0, 0, 0) and deep.getpixel((159, 119)) == (255, 255, 255)


def test_orientation_of_photographs(tmp_path):
    lying = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    lying.save(tmp_path / "photograph.png", exif=exif)
    upright, objects = lying.transpose(Image.Transpose.ROTATE_270), found([[20, 30, 80, 110]], (160, 120))
    expected = np.asarray(draw(upright, objects))
    for image in (tmp_path / "photograph.png", Image.open(tmp_path / "photograph.png")):
        np.testing.assert_array_equal(draw(image, objects), expected)


def test_scale_enlarges_before_drawing():
    image = np.full((20, 30, 3), 128, np.uint8)
    one = found([[5, 5, 20, 15]], (20, 30), mask_probabilities=full(1), keypoints=[[[10, 10, 1]]])
    result = draw(image, one, **{**NOTHING, "boxes": True}, scale=8)
    where = (np.asarray(result) != 128).any(axis=-1)
    assert result.size == (240, 160) and extent(where) == (40, 40, 160, 120)
    point = (np.asarray(draw(image, one, **{**NOTHING, "keypoints": True}, scale=8)) != 128).any(axis=-1)
    x1, y1, x2, y2 = extent(point)
    assert abs((x1 + x2) / 2 - 80) <= 0.5 and abs((y1 + y2) / 2 - 80) <= 0.5
    assert draw(image, one, scale=0.5).size == (15, 10)
    assert draw(image, one, scale=1e-9).size == (1, 1)


@pytest.mark.parametrize(("size", "line", "letters"), [((80, 100), 1, (10, 24)), ((1500, 2000), 5, (40, 70))])
def test_lines_and_labels_grow_with_the_picture(size, line, letters):
    height, width = size
    image = np.full((*size, 3), 128, np.uint8)
    one = found([[0.2 * width, 0.4 * height, 0.8 * width, 0.8 * height]], size, mask_probabilities=full(1))
    assert changed(one, "boxes", image=image)[:, width // 2].sum() == 2 * line
    _, y1, _, y2 = extent(changed(one, "labels", image=image))
    assert letters[0] <= y2 - y1 <= letters[1]


def test_people(shared):
    """Only within their boxes, and a little around their keypoints and boxes, is the photograph changed."""
    folder = shared / "data/coco_people"
    content = json.loads((folder / "person_keypoints_val2017.json").read_text())
    for record in content["images"]:
        people = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in people)], np.float32)
        objects = found(
            boxes,
            (record["height"], record["width"]),
            mask_probabilities=polygon_targets([a["segmentation"] for a in people], boxes, 28),
            keypoints=np.array([a["keypoints"] for a in people], np.float32).reshape(-1, 17, 3),
        )
        path = folder / "val2017" / record["file_name"]
        before = np.asarray(Image.open(path).convert("RGB"))
        after = np.asarray(draw(path, objects, labels=False))
        near = np.zeros(before.shape[:2], bool)
        keypoints = objects.keypoints[objects.keypoints[..., 2] > 0]
        for x1, y1, x2, y2 in (*boxes, *np.tile(keypoints[:, :2], 2)):
            near[max(int(y1) - 9, 0) : int(y2) + 9, max(int(x1) - 9, 0) : int(x2) + 9] = True
        np.testing.assert_array_equal(after[~near], before[~near])
        assert (after[objects.to_labels() > 0] != before[objects.to_labels() > 0]).any(axis=-1).mean() > 0.9


def test_memory_goes_with_the_picture_alone():
    """100 masks of 4000 * 3000 pixels would take 1200 MB; NumPy may take 6 bytes a pixel of the picture."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (100, 2)) * (3600, 2600)
    boxes = np.concatenate([corners, corners + rng.uniform(100, 400, (100, 2))], axis=1)
    boxes[0] = 0, 0, 4000, 3000
    objects = found(boxes, (3000, 4000), mask_probabilities=rng.uniform(0, 1, (100, 28, 28)))
    image = np.zeros((3000, 4000, 3), np.uint8)
    tracemalloc.start()
    try:
        draw(image, objects)
        assert tracemalloc.get_traced_memory()[1] < 72e6
    finally:
        tracemalloc.stop()


def test_pasted_masks_are_not_copied():
    objects = found([[10, 10, 900, 900]] * 50, (1000, 1000), mask_probabilities=full(50))
    image = np.zeros((1000, 1000, 3), np.uint8)
    assert objects.masks.nbytes == 50e6
    tracemalloc.start()
    try:
        draw(image, objects)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_drawing_needs_no_tensorflow():
    code = "import sys, keras_seg.visualize; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


BAD = {
    "size": (
        lambda: draw(GREY[:100], street()),
        ValueError,
        r"the image is 100x160 pixels \(height x width\), but the instances are of an image of 120x160",
    ),
    "by": (
        lambda: draw(GREY, street(), by="score"),
        ValueError,
        "by must be 'instance' or 'class', got 'score'",
    ),
    "alpha": (lambda: draw(GREY, street(), alpha=1.1), ValueError, "alpha must be within 0-1, got 1.1"),
    "nan": (
        lambda: draw(GREY, street(), alpha=float("nan")),
        ValueError,
        "alpha must be within 0-1, got nan",
    ),
    "scale": (lambda: draw(GREY, street(), scale=0), ValueError, "scale must be a positive number, got 0"),
    "skeleton": (
        lambda: draw(GREY, street(), skeleton=[(0, 1), (1, 2)]),
        ValueError,
        r"skeleton has \(1, 2\); there are 2 keypoints, so it takes pairs of 0 ... 1",
    ),
    "negative": (lambda: draw(GREY, person(), skeleton=[(-1, 2)]), ValueError, r"skeleton has \(-1, 2\)"),
    "no pairs": (lambda: draw(GREY, person(), skeleton=[1, 2]), ValueError, "skeleton has 1; there are 17"),
    "no one found": (
        lambda: draw(GREY, found([], keypoints=np.zeros((0, 2, 3))), skeleton=[(0, 2)]),
        ValueError,
        "there are 2 keypoints",
    ),
    "several": (lambda: draw(GREY, [street()]), TypeError, "the Instances of one image, got list"),
    "u-net": (lambda: draw(GREY, np.zeros((120, 160, 2))), TypeError, "got ndarray.*overlay_instances"),
    "image": (lambda: draw(np.zeros((120, 160, 2)), street()), ValueError, r"got shape \[120, 160, 2\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
