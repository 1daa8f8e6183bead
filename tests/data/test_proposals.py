"""The file of stored proposals, and proposals in batches."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from coco_files import content, write
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg import data
from keras_seg.data.detection_geometry import DetectionAugmentation
from keras_seg.data.proposals import Proposals, read_proposals, write_proposals
from keras_seg.data.tfrecord import tfrecords, write_tfrecords
from keras_seg.weights.files import sha256_of


def some(ids=(10, 11, 12), size=(40, 60), each=5, seed=0) -> list[tuple[int, np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    found = []
    for k in ids:
        corner = random.uniform(0, np.array(size[::-1]) - 12, (each, 2))
        boxes = np.concatenate([corner, corner + random.uniform(4, 12, (each, 2))], 1).astype(np.float32)
        found.append((k, boxes, np.sort(random.uniform(0, 1, each).astype(np.float32))[::-1]))
    return found


@pytest.fixture
def files(tmp_path):
    annotations, images = write(tmp_path, content())
    path = tmp_path / "proposals.npz"
    write_proposals(path, some(), model="rpn", annotations=sha256_of(annotations))
    return annotations, images, path


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(0, 4), max_size=5), seed=st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, counts, seed):
    path = tmp_path_factory.mktemp("proposals") / "p.npz"
    found = [some([k * 7], each=n, seed=seed + k)[0] for k, n in enumerate(counts)]
    assert write_proposals(path, found, model="rpn", annotations="ab") == sum(counts)
    read = read_proposals(path)
    assert (len(read), read.model, read.annotations) == (len(counts), "rpn", "ab")
    for k, boxes, scores in found:
        np.testing.assert_array_equal(read.of(k)[0], boxes)
        np.testing.assert_array_equal(read.of(k)[1], scores)


def test_the_boxes_stay_in_the_file_and_compressed_files_are_read_too(files, tmp_path):
    _, _, path = files
    assert isinstance(read_proposals(path).boxes, np.memmap)
    with np.load(path) as arrays:
        np.savez_compressed(tmp_path / "small.npz", **arrays)
    np.testing.assert_array_equal(read_proposals(tmp_path / "small.npz").boxes, read_proposals(path).boxes)


def test_nothing_is_left_of_a_run_that_failed(tmp_path):
    def breaks():
        yield from some((1, 2))
        raise ArithmeticError("stopped")

    with pytest.raises(ArithmeticError, match="stopped"):
        write_proposals(tmp_path / "p.npz", breaks())
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match=r"p\.txt: a file of proposals must end in \.npz"):
        write_proposals(tmp_path / "p.txt", [])
    with pytest.raises(FileNotFoundError, match="no such folder for p.npz"):
        write_proposals(tmp_path / "absent" / "p.npz", [])


def test_proposals_follow_the_image(files):
    """An object's own box, proposed, stays that object's box however the image is resized, turned, mirrored and cut."""
    annotations, images, path = files
    listed = json.loads(annotations.read_text())["annotations"]
    own = {}
    for one in listed:
        x, y, width, height = one["bbox"]
        own.setdefault(one["image_id"], []).append([x, y, x + width, y + height])
    found = [(k, np.array(boxes), np.linspace(0.9, 0.5, len(boxes))) for k, boxes in own.items()]
    write_proposals(path, found, annotations=sha256_of(annotations))
    for options in (
        {"short_side": 75, "augment": False},
        {"short_side": (50, 90), "augment": DetectionAugmentation(turns=True)},
        {"short_side": 64, "augment": DetectionAugmentation(flip=1.0, zoom=(0.7, 1.4))},
    ):
        batches = data.coco(annotations, images, proposals=path, batch_size=3, masks=False, seed=3, **options)
        for batch in batches.take(3):
            assert batch["proposals"].shape == (3, 2, 4)
            np.testing.assert_array_equal(batch["proposals"], batch["boxes"])
    cut = DetectionAugmentation(turns=True, crop=32)
    seen = 0
    for batch in data.coco(annotations, images, proposals=path, short_side=80, augment=cut, masks=False).take(
        12
    ):
        boxes, size = batch["proposals"].numpy()[0], batch["size"].numpy()[0]
        assert (
            (boxes >= 0).all() and (boxes <= size[[1, 0, 1, 0]]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        )
        # what is left of an object is left of its proposal (objects of less than a pixel are dropped)
        kept = batch["boxes"].numpy()[0]
        assert all((np.abs(boxes - box).max(1) < 1e-4).any() for box in kept)
        seen += len(kept)
    assert seen


def test_items_do_not_depend_on_proposals(files):
    annotations, images, path = files
    options = {"batch_size": 2, "short_side": 48, "seed": 1}
    pairs = zip(
        data.coco(annotations, images, **options).take(2),
        data.coco(annotations, images, proposals=path, **options).take(2),
        strict=True,
    )
    for without, with_them in pairs:
        assert with_them.keys() - without.keys() == {"proposals"}
        for name, value in without.items():
            np.testing.assert_array_equal(value, with_them[name])


def test_records_take_proposals_too(files, tmp_path):
    annotations, images, path = files
    folder = write_tfrecords(annotations, images, tmp_path / "records")
    options = {"short_side": 48, "seed": 1}
    for a, b in zip(
        data.coco(annotations, images, proposals=path, **options).take(3),
        tfrecords(folder, proposals=read_proposals(path), **options).take(3),
        strict=True,
    ):
        np.testing.assert_array_equal(a["proposals"], b["proposals"])


def test_proposals_for_others_are_refused(files, tmp_path):
    annotations, images, path = files
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changed = tmp_path / "other.json"
        changed.write_text(annotations.read_text() + " ")
        with pytest.raises(
            ValueError, match=r"proposals.npz: was made for other annotations .*other\.json .*keras-seg pro"
        ):
            data.coco(changed, images, proposals=path)
        write_proposals(path, some((10, 99)), annotations=sha256_of(annotations))
        with pytest.raises(
            ValueError, match=r"has no proposals for 2 of the 3 images of .* \(ids 11, 12\); make them anew"
        ):
            data.coco(annotations, images, proposals=path)
        write_proposals(path, some(size=(60, 400)), annotations=sha256_of(annotations))
        with pytest.raises(
            ValueError, match=r"image 1\d of .* has 40x60 pixels \(height x width\), and a proposal lies out"
        ):
            data.coco(annotations, images, proposals=path)
        with pytest.raises(
            FileNotFoundError, match="nothing.npz: no such file; keras-seg proposals writes it"
        ):
            data.coco(annotations, images, proposals=tmp_path / "nothing.npz")


def test_annotations_that_are_no_file_go_without_their_checksum(files):
    annotations, images, path = files
    batches = data.coco(json.loads(annotations.read_text()), images, proposals=path, short_side=48)
    assert next(iter(batches))["proposals"].shape == (1, 5, 4)


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "p.npz"
    for make in (
        lambda: path.write_bytes(b"nothing of the kind"),
        lambda: np.savez(path, boxes=np.zeros((1, 4))),
        lambda: np.savez(path, about=json.dumps([]), boxes=0, scores=0, image_ids=0, splits=0),
    ):
        make()
        with pytest.raises(ValueError, match="p.npz: not a file of proposals, or damaged"):
            read_proposals(path)
    write_proposals(path, some((1,)))
    with np.load(path) as file:
        arrays = dict(file)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="p.npz: not a file of proposals, or damaged"):
        read_proposals(path)
    np.savez(path, **{**arrays, "about": json.dumps({"layout": 9, "model": "", "annotations": ""})})
    with pytest.raises(ValueError, match="layout 9, this version reads 1"):
        read_proposals(path)
    np.savez(path, **{**arrays, "boxes": arrays["boxes"].astype(np.float64)})
    with pytest.raises(ValueError, match="boxes is float64 with 2 axes"):
        read_proposals(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(3, np.float32)}, "arrays that do not fit together"),
        ({"splits": np.array([0, 4, 2, 6])}, "arrays that do not fit together"),
        ({"image_ids": np.array([1, 2, 1])}, "has image 1 twice"),
        (
            {"boxes": np.float32([[0, 0, 1, 1]] * 3 + [[2, 2, 1, 3]] + [[0, 0, 1, 1]] * 2)},
            r"image 2 has the box \[2",
        ),
        (
            {"boxes": np.float32([[0, 0, 1, 1]] * 5 + [[0, 0, np.nan, 3]])},
            r"image 3 has the box \[0.0, 0.0, nan",
        ),
        ({"scores": np.float32([0, 0, 0, 0, 0, 2])}, "with score 2.0"),
    ],
)
def test_malformed_arrays_are_told(changes, message):
    arrays = {
        "boxes": np.float32([[0, 0, 1, 1]] * 6), "scores": np.zeros(6, np.float32), "image_ids": np.array([1, 2, 3]),
        "splits": np.array([0, 2, 4, 6]),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        Proposals(**{**arrays, **changes})
