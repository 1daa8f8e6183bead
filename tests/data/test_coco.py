"""`data.coco`: batches for detectors, their order, and what stops them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from coco_files import content, with_keypoints, with_runs, write
from PIL import Image

from keras_seg import data
from keras_seg.data.detection_batches import epoch_order
from keras_seg.data.detection_geometry import DetectionAugmentation
from keras_seg.data.tfrecord import tfrecords, write_tfrecords

PLAIN = {"short_side": None, "augment": False}
VARIED = DetectionAugmentation(crop=32, turns=True, zoom=(0.8, 1.3), brightness=0.2)


def take(dataset, count: int = 10**6) -> list[dict[str, np.ndarray]]:
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset.take(count)]


def ids(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return [int(i) for batch in batches for i in batch["image_id"]]


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_batch_holds_what_training_needs(tmp_path):
    files = write(tmp_path, with_keypoints(content()))
    dataset = data.coco(*files, batch_size=3, repeat=False, **PLAIN)
    assert dataset.class_names == ("three", "seven") and dataset.category_ids.tolist() == [3, 7]
    assert dataset.images == 3
    (batch,) = take(dataset)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((3, 64, 64, 3), "uint8"),
        "size": ((3, 2), "float32"),
        "image_id": ((3,), "int64"),
        "boxes": ((3, 2, 4), "float32"),
        "classes": ((3, 2), "int32"),
        "crowd": ((3, 2), "bool"),
        "polygon_points": ((3, 8, 2), "float64"),
        "polygon_lengths": ((3, 2), "int32"),
        "polygon_objects": ((3, 2), "int32"),
        "keypoints": ((3, 2, 3, 3), "float32"),
    }
    assert batch["image_id"].tolist() == [10, 11, 12] and batch["size"].tolist() == [[40, 60]] * 3
    for k, image in enumerate(batch["image"]):
        np.testing.assert_array_equal(image[:40, :60], np.asarray(Image.open(files[1] / f"{k}.png")))
        assert not image[40:].any() and not image[:, 60:].any()
    np.testing.assert_array_equal(batch["boxes"][0], [[4, 5, 18, 16], [7, 12, 21, 23]])
    assert batch["classes"].tolist() == [[1, 0]] * 3


def test_images_with_fewer_objects_are_padded(tmp_path):
    annotations = with_runs(content())
    del annotations["annotations"][1], annotations["annotations"][3:]
    files = write(tmp_path, annotations)
    (batch,) = take(data.coco(*files, batch_size=3, keep_empty=True, repeat=False, **PLAIN))
    assert batch["classes"].tolist() == [[1, -1], [1, 0], [-1, -1]]
    assert not batch["boxes"][2].any() and not batch["mask_windows"][2].any()
    start, y, x, height, width = batch["mask_windows"][1, 1]
    assert (y, x, height, width) == (12, 8, 11, 14)
    assert batch["mask_pixels"][1, start : start + height * width].all()
    (batch,) = take(data.coco(*files, batch_size=3, repeat=False, **PLAIN))
    assert batch["image_id"].tolist() == [10, 11]


def test_polygons_and_run_lengths_in_one_file(tmp_path):
    mixed = with_runs(content())
    mixed["annotations"][0]["segmentation"] = [[4, 5, 18, 5, 18, 16]]
    (batch,) = take(data.coco(*write(tmp_path, mixed), batch_size=3, repeat=False, **PLAIN))
    assert not batch["mask_windows"][0, 0].any() and batch["mask_windows"][0, 1].any()
    assert batch["polygon_lengths"].tolist() == [[3], [0], [0]]
    assert batch["polygon_objects"].tolist() == [[0], [-1], [-1]]


def test_the_same_seed_gives_the_same_items_whatever_the_parallelism(tmp_path):
    files = write(tmp_path, with_runs(content(images=7)))
    options = {"batch_size": 2, "short_side": (30, 50), "augment": VARIED}
    first = take(data.coco(*files, seed=5, parallel=1, **options), 9)
    assert_same(first, take(data.coco(*files, seed=5, parallel=4, **options), 9))
    assert_same(first[4:], take(data.coco(*files, seed=5, start=4, **options), 5))
    other = take(data.coco(*files, seed=6, **options), 9)
    assert any(
        a["image"].shape != b["image"].shape or (a["image"] != b["image"]).any()
        for a, b in zip(first, other, strict=True)
    )


def test_every_pass_has_every_image_once_in_a_new_order(tmp_path):
    files = write(tmp_path, content(images=6))
    order = ids(take(data.coco(*files, batch_size=2, **PLAIN), 9))
    passes = [order[k : k + 6] for k in (0, 6, 12)]
    assert all(sorted(p) == list(range(10, 16)) for p in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]


def test_one_pass_keeps_the_order_of_the_file(tmp_path):
    files = write(tmp_path, content(images=5))
    batches = take(data.coco(*files, batch_size=2, repeat=False, **PLAIN))
    assert [b["image_id"].tolist() for b in batches] == [[10, 11], [12, 13], [14]]
    shuffled = ids(take(data.coco(*files, batch_size=2, repeat=False, shuffle=True, seed=1, **PLAIN)))
    assert sorted(shuffled) == list(range(10, 15)) and shuffled != list(range(10, 15))


def test_the_batches_of_two_hosts_are_those_of_one_of_twice_the_size(tmp_path):
    files = write(tmp_path, with_keypoints(content(images=9)))
    options = {"short_side": (30, 50), "seed": 3}
    whole = take(data.coco(*files, batch_size=4, **options), 5)
    halves = [take(data.coco(*files, batch_size=2, shard=(host, 2), **options), 5) for host in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert one["image_id"].tolist() == [*first["image_id"], *second["image_id"]]
        for k in range(4):
            part, row = (first, k) if k < 2 else (second, k - 2)
            height, width = one["size"][k].astype(int)
            assert part["size"][row].tolist() == [height, width]
            np.testing.assert_array_equal(
                part["image"][row, :height, :width], one["image"][k, :height, :width]
            )
            np.testing.assert_array_equal(part["boxes"][row], one["boxes"][k])
    passes = [ids(take(data.coco(*files, batch_size=2, shard=(h, 2), repeat=False, **PLAIN))) for h in (0, 1)]
    assert passes == [[10, 11, 14, 15, 18], [12, 13, 16, 17]]


def test_batches_hold_images_of_one_shape():
    random = np.random.default_rng(0)
    ratios = random.choice([0.6, 1.0, 1.5], 1003)
    order = epoch_order(ratios, 4, 0, 0, shuffle=True, complete=True)
    assert len(order) == 1000 and len(set(order.tolist())) == 1000
    mixed = [len(set(ratios[batch])) > 1 for batch in order.reshape(-1, 4)]
    assert sum(mixed) <= 2
    assert len(np.flatnonzero(np.diff(ratios[order[::4]]))) > 50  # the shapes take turns
    again = epoch_order(ratios, 4, 0, 1, shuffle=True, complete=True)
    assert (order != again).any()
    assert epoch_order(np.ones(2), 5, 0, 0, shuffle=False, complete=True).tolist() == [0, 1, 0, 1, 0]
    assert epoch_order(np.ones(3), 2, 0, 0, shuffle=False, complete=False).tolist() == [0, 1, 2]


def test_grey_and_exif_images(tmp_path):
    annotations = content(images=2)
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.arange(2400, dtype=np.uint8).reshape(60, 40)
    Image.fromarray(pixels).save(folder / "0.png", exif=exif)  # lies on its side
    (batch,) = take(data.coco(*write(tmp_path, annotations, mode="L"), batch_size=2, repeat=False, **PLAIN))
    np.testing.assert_array_equal(batch["image"][0, :40, :60, 1], np.rot90(pixels, -1))
    assert (batch["image"][1, ..., :1] == batch["image"][1]).all()


def test_missing_images_are_all_named_at_once(tmp_path):
    annotations, images = write(tmp_path, content(images=15))
    for k in range(1, 15):
        (images / f"{k}.png").unlink()
    with pytest.raises(FileNotFoundError, match="14 of 15 images are not in") as refusal:
        data.coco(annotations, images)
    assert all(f"\n  {k}.png" in str(refusal.value) for k in range(1, 15))
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        data.coco(annotations, tmp_path / "nowhere")


def test_dropped_objects_are_reported_once(tmp_path):
    annotations = content()
    for annotation in annotations["annotations"][1:3]:
        annotation["bbox"][2] = 0
    with pytest.warns(
        UserWarning, match=r"2 annotations are dropped \(ids 101, 102\); the first: .* has no extent"
    ) as told:
        data.coco(*write(tmp_path, annotations), **PLAIN)
    assert len(told) == 1


def test_objects_without_a_mask_are_refused_unless_boxes_suffice(tmp_path):
    annotations = content()
    del annotations["annotations"][0]["segmentation"]
    files = write(tmp_path, annotations)
    with pytest.raises(ValueError, match=r"1 of 6 annotations have no segmentation \(ids 100\)"):
        data.coco(*files)
    (batch,) = take(data.coco(*files, masks=False, batch_size=3, repeat=False, **PLAIN))
    assert "polygon_points" not in batch and batch["classes"].shape == (3, 2)


def test_unreadable_images_are_left_out_up_to_a_limit(tmp_path):
    files = write(tmp_path, content(images=8))
    (files[1] / "2.png").write_bytes((files[1] / "2.png").read_bytes()[:200])
    Image.new("RGB", (10, 10)).save(files[1] / "5.png")
    with pytest.warns(UserWarning) as told:
        batches = take(data.coco(*files, batch_size=2, repeat=False, **PLAIN))
    assert ids(batches) == [10, 11, 13, 14, 16, 17]
    messages = sorted(str(warning.message) for warning in told if "left out" in str(warning.message))
    assert len(messages) == 2 and "2.png" in "".join(messages) and "10x10 pixels" in "".join(messages)
    # where passes repeat, the next image takes the place, and the others keep theirs
    (tmp_path / "clean").mkdir()
    whole = take(data.coco(*write(tmp_path / "clean", content(images=8)), batch_size=2, **PLAIN), 8)
    with pytest.warns(UserWarning, match="left out"):
        replaced = take(data.coco(*files, batch_size=2, **PLAIN), 8)
    assert ids(replaced) == [{12: 13, 15: 16}.get(i, i) for i in ids(whole)]
    with (
        pytest.warns(UserWarning, match="left out, number 1 of at most 1"),
        pytest.raises(
            Exception, match=r"2 images cannot be used, max_unreadable is 1:(.|\n)*\.png(.|\n)*\.png"
        ),
    ):
        take(data.coco(*files, batch_size=2, max_unreadable=1, **PLAIN), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size and multiple must be positive"),
        ({"shard": (2, 2)}, r"shard: must be \(number, how many\) .* got \(2, 2\)"),
        ({"short_side": (50, 40)}, r"short_side: must be a number or \(low, high\)"),
        ({"short_side": 900, "max_side": 800}, "positive and at most max_side, got 900 and 800"),
        ({"short_side": (30, 40), "augment": False}, r"short_side: a range, \(30, 40\), but augment=False"),
        ({"keypoints": True}, "keypoints are asked for, but no category names any"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data.coco(*write(tmp_path, content()), **options)


def test_what_keypoints_and_masks_need(tmp_path):
    bare = content()
    for annotation in bare["annotations"]:
        del annotation["segmentation"]
    with pytest.raises(ValueError, match="no segmentation"):
        data.coco(*write(tmp_path, bare), masks=True)
    named = with_keypoints(content())
    for category in named["categories"]:
        category["keypoints"] = ["a", "b", "c"]
    files = write(tmp_path, named)
    with pytest.raises(ValueError, match="no name says left or right"):
        data.coco(*files)
    with pytest.raises(
        ValueError, match=r"keypoint_mirror: must give each of 3 keypoints .* got \[1, 2, 0\]"
    ):
        data.coco(*files, keypoint_mirror=[1, 2, 0])
    mirrored = data.coco(*files, keypoint_mirror=[0, 2, 1])
    assert take(mirrored, 1)[0]["keypoints"].shape[2:] == (3, 3)
    none = content()
    none["annotations"] = []
    with pytest.raises(ValueError, match="no images to make batches of"):
        data.coco(*write(tmp_path, none))


def test_real_nuclei_crops_agree_with_their_masks(shared):
    """Boxes are the tightest around their masks in the file, and so they are after turning, scaling and cropping."""
    folder = shared / "data/nuclei"
    augment = DetectionAugmentation(turns=True, crop=96)
    batches = take(
        data.coco(
            folder / "instances_val.json", folder / "val", batch_size=2, short_side=None, augment=augment
        ),
        4,
    )
    seen = 0
    for batch in batches:
        for k in range(2):
            for box, (start, y, x, height, width) in zip(
                batch["boxes"][k], batch["mask_windows"][k], strict=True
            ):
                if height:
                    np.testing.assert_array_equal(box, [x, y, x + width, y + height])
                    pixels = batch["mask_pixels"][k, start : start + height * width].reshape(height, width)
                    assert all(edge.any() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
                    seen += 1
    assert seen > 20


def test_real_people_keep_their_keypoints_inside_their_boxes(shared):
    folder = shared / "data/coco_people"
    files = folder / "person_keypoints_val2017.json", folder / "val2017"
    batches = take(data.coco(*files, batch_size=4, short_side=(100, 160)), 2)
    for batch in batches:
        seen = batch["keypoints"][..., 2] > 0
        x, y = batch["keypoints"][..., 0], batch["keypoints"][..., 1]
        x1, y1, x2, y2 = (batch["boxes"][..., k, None] for k in range(4))
        inside = (x >= x1 - 1) & (x <= x2 + 1) & (y >= y1 - 1) & (y <= y2 + 1)
        assert seen.sum() == 181 and (inside | ~seen).mean() > 0.97


def test_the_index_of_many_images_is_small(tmp_path):
    """Bytes of the arrays an annotation; the whole of COCO is measured in benchmarks/coco_data_start.py."""
    from keras_seg.data.coco_index import read_index

    index, _ = read_index(content(images=2000, objects=4))
    size = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    points = index.decimals.nbytes
    assert index.decimals.dtype == np.int32 and points == 8 * 4 * 8000
    assert size - points < 120 * 8000


# -- TFRecord --------------------------------------------------------------------------------------------------


def test_records_give_the_batches_of_the_annotations(tmp_path):
    annotations = with_keypoints(with_runs(content(images=5)))
    annotations["annotations"][2]["segmentation"] = [[4.25, 5, 18, 5, 18, 1 / 3]]
    annotations["annotations"][5]["iscrowd"] = 1
    files = write(tmp_path, annotations)
    folder = write_tfrecords(*files, tmp_path / "records", shards=2)
    assert sorted(p.name for p in folder.glob("*.tfrecord")) == [
        "data-00000-of-00002.tfrecord",
        "data-00001-of-00002.tfrecord",
    ]
    options = {"batch_size": 2, "short_side": (30, 50), "augment": VARIED, "seed": 4}
    from_records = tfrecords(folder, **options)
    assert from_records.class_names == ("three", "seven") and from_records.images == 5
    assert_same(take(data.coco(*files, **options), 5), take(from_records, 5))


def test_records_are_complete_examples(tmp_path):
    import tensorflow as tf

    files = write(tmp_path, content(images=2))
    folder = write_tfrecords(*files, tmp_path / "records")
    records = list(
        tf.data.TFRecordDataset([str(p) for p in sorted(folder.glob("*.tfrecord"))]).as_numpy_iterator()
    )
    assert len(records) == 2  # checksums included
    features = tf.train.Example.FromString(records[1]).features.feature
    assert features["image/encoded"].bytes_list.value[0] == (files[1] / "1.png").read_bytes()
    assert features["image/object/class/label"].int64_list.value == [1, 0]


def test_existing_records_are_not_overwritten_silently(tmp_path):
    files = write(tmp_path, content())
    folder = write_tfrecords(*files, tmp_path / "records")
    with pytest.raises(FileExistsError, match=r"exists already; overwrite=True \(--overwrite\) replaces it"):
        write_tfrecords(*files, folder)
    write_tfrecords(*files, folder, shards=3, overwrite=True)
    assert len(list(folder.glob("*.tfrecord"))) == 3
    assert not list(tmp_path.glob("*unfinished*"))


def test_damaged_records_are_told(tmp_path):
    files = write(tmp_path, content())
    with pytest.raises(FileNotFoundError, match=r"index\.npz: no such file"):
        tfrecords(tmp_path)
    folder = write_tfrecords(*files, tmp_path / "records", shards=2)
    shard = folder / "data-00001-of-00002.tfrecord"
    content_before = shard.read_bytes()
    shard.write_bytes(content_before[:-10])
    with pytest.raises(
        ValueError, match=r"data-00001-of-00002.tfrecord: \d+ bytes, the index says \d+: cut off"
    ):
        tfrecords(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="shards are missing: data-00001-of-00002.tfrecord"):
        tfrecords(folder)
    (folder / "index.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match="not an index of records, or damaged"):
        tfrecords(folder)


def test_images_of_sixteen_bits_pass_through_records(tmp_path):
    annotations, images = write(tmp_path, content(images=1))
    deep = np.random.default_rng(0).integers(0, 65536, (40, 60), np.uint16)
    Image.fromarray(deep).save(images / "0.png")
    folder = write_tfrecords(annotations, images, tmp_path / "records")
    (batch,) = take(tfrecords(folder, repeat=False, **PLAIN))
    np.testing.assert_array_equal(batch["image"][0, :40, :60, 0], np.rint(deep * (255 / 65535)))


# -- tf.data service -------------------------------------------------------------------------------------------


def test_batches_come_through_the_service_of_a_local_worker(tmp_path):
    from keras_seg.data.service import receive, serve

    files = write(tmp_path, with_runs(content(images=5)))
    options = {"batch_size": 2, "short_side": (30, 50), "augment": VARIED, "seed": 2}
    dataset = data.coco(*files, **options)
    service = serve(dataset)
    try:
        assert_same(
            take(data.coco(*files, **options), 6), take(receive(service.address, dataset.element_spec), 6)
        )
    finally:
        service.stop()


def test_annotations_may_be_given_as_a_dictionary(tmp_path):
    annotations, images = write(tmp_path, content())
    given = data.coco(json.loads(annotations.read_text()), images, batch_size=3, **PLAIN)
    assert_same(take(given, 1), take(data.coco(annotations, images, batch_size=3, **PLAIN), 1))


def test_python_ends_while_batches_are_being_made(tmp_path):
    """TensorFlow would wait for ever for a call that Python stopped (the iterator is alive to the end)."""
    files = write(tmp_path, content(images=4))
    script = (
        "import sys; from keras_seg import data\n"
        "batches = iter(data.coco(sys.argv[1], sys.argv[2], short_side=1200, max_side=2000, parallel=2))\n"
        "next(batches)\nprint('end')\n"
    )
    line = [sys.executable, "-c", script, *map(str, files)]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=True)
    assert ended.stdout == "end\n"
