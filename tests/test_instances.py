"""`Instances`: arrays checked and kept, parts of it, label images, COCO results, and the references' own masks."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from keras_seg.instances import Instances

SIZE = (10, 12)


def three(**changes) -> Instances:
    """Solid objects: a cat on the left, a dog over its right half, another cat apart."""
    arguments = {
        "boxes": [[1, 1, 7, 6], [4, 2, 10, 8], [9, 8, 12, 10]],
        "scores": [0.75, 0.875, 0.5],
        "classes": [0, 1, 0],
        "image_size": SIZE,
        "mask_probabilities": np.ones((3, 4, 4)),
        "keypoints": np.arange(18).reshape(3, 2, 3),
        "class_names": ["cat", "dog"],
    }
    return Instances(**{**arguments, **changes})


def solid(*boxes) -> np.ndarray:
    """bool [N, H, W], the pixels of whole-pixel boxes, less the corners: there the surface of a mask is below 1/2."""
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def test_arrays():
    result = three()
    assert len(result) == 3
    assert (result.boxes.dtype, result.scores.dtype, result.classes.dtype) == (
        np.float32,
        np.float32,
        np.int32,
    )
    assert result.image_size == SIZE
    assert result.names == ["cat", "dog", "cat"]
    assert three(class_names=None).names == ["class 0", "class 1", "class 0"]


def test_frozen():
    result = three()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.scores = np.zeros(3)
    with pytest.raises(ValueError, match="read-only"):
        result.boxes[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        result.masks[0] = False


def test_the_given_arrays_stay_writeable():
    scores = np.ones(3, np.float32)
    three(scores=scores)
    scores[0] = 0.5


def test_masks_are_pasted_once():
    result = three()
    assert "masks" not in vars(result)
    np.testing.assert_array_equal(result.masks, solid(*result.boxes.astype(int)))
    assert result.masks is result.masks


def test_parts_share_pasted_masks():
    result = three()
    fresh = result[1:].masks
    pasted = result.masks
    assert np.shares_memory(result[1:].masks, pasted)
    np.testing.assert_array_equal(result[1:].masks, fresh)
    np.testing.assert_array_equal(result[[2, 0]].masks, pasted[[2, 0]])


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, [1]),
        (-1, [2]),
        (slice(None, 2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        ([2, 0], [2, 0]),
        (np.array([1, 1]), [1, 1]),
        ([True, False, True], [0, 2]),
        (np.array([False] * 3), []),
        ([], []),
    ],
)
def test_index(index, expected):
    part = three()[index]
    assert isinstance(part, Instances)
    assert part.scores.tolist() == [three().scores[k] for k in expected]
    assert part.keypoints.shape == (len(expected), 2, 3)
    assert part.mask_probabilities.shape == (len(expected), 4, 4)
    assert (part.class_names, part.image_size) == (("cat", "dog"), SIZE)


def test_iteration():
    assert [(len(each), each.names) for each in three()] == [(1, ["cat"]), (1, ["dog"]), (1, ["cat"])]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (3, IndexError, "index 3 for 3 objects"),
        ([0, -4], IndexError, "index -4 for 3 objects"),
        ([True, False], IndexError, r"a mask of shape \[2\] for 3 objects"),
        (0.5, TypeError, r"takes an int, a slice, .* got float64 \[\]"),
        ([[0, 1]], TypeError, r"got int64 \[1, 2\]"),
        ("cat", TypeError, "takes an int"),
    ],
)
def test_messages_of_index(index, error, message):
    with pytest.raises(error, match=message):
        three()[index]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2]),
        ({"score_threshold": 0.75}, [0, 1]),
        ({"classes": "cat"}, [0, 2]),
        ({"classes": ["dog", 0]}, [0, 1, 2]),
        ({"classes": 1}, [1]),
        ({"classes": []}, []),
        ({"max_detections": 2}, [0, 1]),
        ({"max_detections": 0}, []),
        ({"classes": "cat", "score_threshold": 0.5, "max_detections": 1}, [0]),
    ],
)
def test_filter(options, expected):
    assert three().filter(**options).scores.tolist() == three().scores[expected].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "dgo"}, "classes: 'dgo': not one of the class_names; do you mean 'dog'?"),
        ({"classes": 2}, r"classes: 2 is not within 0 ... 1"),
        ({"max_detections": -1}, "max_detections must be 0 or more, got -1"),
    ],
)
def test_messages_of_filter(options, message):
    with pytest.raises(ValueError, match=message):
        three().filter(**options)


def test_filter_by_name_needs_names():
    with pytest.raises(ValueError, match="classes: 'cat': there are no class_names"):
        three(class_names=None).filter(classes="cat")
    assert len(three(class_names=None).filter(classes=[0])) == 2


def test_to_labels():
    """The dog's score is higher than the cat's, so that it keeps the pixels that both cover."""
    labels = three().to_labels()
    cat, dog, other = solid([1, 1, 7, 6], [4, 2, 10, 8], [9, 8, 12, 10])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, np.select([dog, cat, other], [2, 1, 3]))


def test_to_labels_of_equal_scores():
    labels = three(scores=[0.5, 0.5, 0.5]).to_labels()
    cat, dog, other = three().masks
    np.testing.assert_array_equal(labels, np.select([cat, dog, other], [1, 2, 3]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_to_labels_shows_each_pixels_best_object(seed, n):
    random = np.random.default_rng(seed)
    boxes = random.uniform(-2, 12, (n, 4))
    result = Instances(boxes, random.permutation(n) / 8, np.zeros(n), SIZE, random.uniform(size=(n, 3, 3)))
    ranked = np.where(result.masks, result.scores[:, None, None], -1)
    expected = np.where(result.masks.any(axis=0), ranked.argmax(axis=0) + 1, 0) if n else np.zeros(SIZE)
    np.testing.assert_array_equal(result.to_labels(), expected)


def test_to_coco():
    results = json.loads(json.dumps(three().to_coco(7)))
    assert [each["image_id"] for each in results] == [7, 7, 7]
    assert [each["category_id"] for each in results] == [1, 2, 1]
    assert [each["score"] for each in results] == [0.75, 0.875, 0.5]
    assert results[1]["bbox"] == [4, 2, 6, 6]
    assert results[1]["keypoints"] == [5.5, 6.5, 8, 8.5, 9.5, 11]
    for each, mask in zip(results, three().masks, strict=True):
        np.testing.assert_array_equal(coco.decode(each["segmentation"]), mask)
    assert [each["category_id"] for each in three().to_coco(np.int64(7), [18, 17])] == [18, 17, 18]


def test_to_coco_of_torchvision_keeps_keypoints():
    assert three(convention="torchvision").to_coco(7)[0]["keypoints"] == [0, 1, 2, 3, 4, 5]


def test_to_coco_of_boxes_only():
    result = three(mask_probabilities=None, keypoints=None)
    assert set(result.to_coco(1)[0]) == {"image_id", "category_id", "bbox", "score"}


def test_options_reach_the_masks():
    """A tent of one cell: a higher threshold leaves fewer pixels, torchvision's boxes are larger."""
    tent = {"mask_probabilities": np.ones((3, 1, 1))}
    areas = [
        three(**tent, **options).masks.sum()
        for options in ({"mask_threshold": 0.8}, {}, {"convention": "torchvision"})
    ]
    assert areas[0] < areas[1] != areas[2]
    for options in ({"mask_threshold": 0.8}, {"convention": "torchvision"}):
        result = three(**tent, **options)
        assert coco.area([each["segmentation"] for each in result.to_coco(1)]).sum() == result.masks.sum()
        np.testing.assert_array_equal(result.to_labels() > 0, result.masks.any(axis=0))


def test_nothing_found():
    result = three()[:0]
    assert len(result) == 0
    assert list(result) == []
    assert result.masks.shape == (0, *SIZE)
    assert not result.to_labels().any()
    assert result.to_coco(1) == []
    assert result.to_coco(1, []) == []
    assert len(result.filter(classes="dog", max_detections=3)) == 0


def test_repr():
    assert repr(three()) == (
        "<Instances in 10x12 pixels: 2 cat (0.75-0.50), 1 dog (0.88); masks; 2 keypoints>"
    )
    assert repr(three(mask_probabilities=None, keypoints=None, class_names=None)[1]) == (
        "<Instances in 10x12 pixels: 1 class 1 (0.88)>"
    )
    assert repr(three()[:0]) == "<Instances in 10x12 pixels: no objects; masks; 2 keypoints>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros(4)}, r"boxes must be \[N, 4\], got \[4\]"),
        ({"boxes": None}, r"boxes must be \[N, 4\], got \[\]"),
        ({"scores": [1, 2]}, r"scores must be \[3\], got \[2\]"),
        ({"classes": [[0], [1], [0]]}, r"classes must be \[3\], got \[3, 1\]"),
        (
            {"mask_probabilities": np.ones((2, 4, 4))},
            r"mask_probabilities must be \[3, m, m\], got \[2, 4, 4\]",
        ),
        (
            {"mask_probabilities": np.ones((3, 4, 5))},
            r"mask_probabilities must be \[3, 4, 4\], got \[3, 4, 5\]",
        ),
        ({"keypoints": np.ones((3, 2))}, r"keypoints must be \[3, K, 3\], got \[3, 2\]"),
        ({"image_size": 10}, r"image_size is \(height, width\), got 10"),
        ({"image_size": (10, 12, 3)}, r"image_size is \(height, width\), got \(10, 12, 3\)"),
        ({"classes": [0, -1, 0]}, "classes must be 0 or more, got -1"),
        ({"class_names": ["cat"]}, "class 1 has no name, class_names are 1"),
        ({"convention": "coco"}, "convention must be 'detectron2' or 'torchvision', got 'coco'"),
    ],
)
def test_messages_of_the_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        three(**changes)


def test_messages_of_the_results():
    with pytest.raises(ValueError, match="class 1 has none of the 1 category_ids"):
        three().to_coco(1, [18])
    bare = three(mask_probabilities=None)
    for name, ask in (("masks", lambda: bare.masks), ("to_labels", bare.to_labels)):
        with pytest.raises(
            ValueError, match=f"{name}: these Instances have no masks; the model has no mask head"
        ):
            ask()


@pytest.mark.parametrize(
    ("model", "convention", "image"),
    [
        ("detectron2/mask_rcnn_R_50_FPN_1x", "detectron2", "coco_000000000785_320"),
        ("detectron2/mask_rcnn_R_50_C4_1x", "detectron2", "coco_000000000785_320"),
        ("torchvision/maskrcnn_resnet50_fpn", "torchvision", "coco_000000000785_320"),
    ],
)
def test_masks_are_the_references(shared, model, convention, image):
    """Pasted from probabilities that are stored in 16 bits: IoU at least 0.99."""
    golden = np.load(shared / "golden" / model / f"{image}.npz")
    size = tuple(golden["original_size"])
    result = Instances(
        golden["instances.boxes"],
        golden["instances.scores"],
        np.zeros(len(golden["instances.boxes"])),
        size,
        golden["instances.mask_probs"],
        convention=convention,
    )
    packed = golden["instances.masks_packed"]
    expected = np.unpackbits(packed, axis=1)[:, : size[0] * size[1]].reshape(-1, *size).astype(bool)
    encoded = [each["segmentation"] for each in result.to_coco(1)]
    reference = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in expected]
    overlap = np.array(
        [coco.iou([ours], [other], [0])[0, 0] for ours, other in zip(encoded, reference, strict=True)]
    )
    some = expected.any(axis=(1, 2))
    assert overlap[some].min() >= 0.99
    np.testing.assert_array_equal(result.masks.any(axis=(1, 2)), some)
