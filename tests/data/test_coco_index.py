"""COCO annotations into arrays: what is read, and what is refused with which message."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import content, with_keypoints, with_runs, write
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_seg.data import json_stream
from keras_seg.data.coco_index import read_index, scan
from keras_seg.ops.rle import decode_rle


def changed(**fields) -> dict:
    """The small data set, of whose first annotation some fields differ; a field that is ... is removed."""
    data = content()
    for name, value in fields.items():
        if value is ...:
            del data["annotations"][0][name]
        else:
            data["annotations"][0][name] = value
    return data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(
    data=st.dictionaries(st.text(), JSON, max_size=5),
    chunk=st.integers(1, 40),
    ascii_only=st.booleans(),
    indent=st.none() | st.integers(0, 2),
)
def test_a_json_object_read_in_pieces_is_the_same(tmp_path_factory, data, chunk, ascii_only, indent):
    path = tmp_path_factory.getbasetemp() / "pieces.json"
    path.write_text(
        json.dumps(data, ensure_ascii=ascii_only, indent=indent), encoding="utf-8", errors="surrogatepass"
    )
    if not ascii_only and any("\ud800" <= c <= "\udfff" for c in json.dumps(data, ensure_ascii=False)):
        return  # a lone surrogate has no UTF-8
    before, json_stream.CHUNK = json_stream.CHUNK, chunk
    try:
        found = {}
        for key, place, value in json_stream.sections(path):
            if place is None:
                found[key] = value
            elif place < 0:
                found[key] = []
            else:
                assert place == len(found[key])
                found[key].append(value)
    finally:
        json_stream.CHUNK = before
    assert found == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the file is empty \(0 bytes\)"),
        ("[{}]", "line 1, column 1: a list, as of results; annotations are a JSON object"),
        ('{"images": [\n  {"id": 1,}]}', "line 2, column .*: .*property name"),
        (
            '{"images": [{"id": 1}',
            r"line 1, column 22: the end of the file where .* is expected \(is the file cut off\?\)",
        ),
        ('{"images": [1 2]}', "line 1, column 15: '2' where ',' or ']' is expected"),
        ('{"images": [], "images": []}', "the key 'images' is there twice"),
        ('{"images": []} x', "'x' after the end of the object"),
        ('{"images": {}, "annotations": [], "categories": []}', "images: must be a list, not {}"),
        ('{"images": []}', "has no annotations, no categories: not COCO annotations"),
        (
            '{"images": ["a"], "annotations": [], "categories": []}',
            "image number 0 of the list: entry: an object, not 'a'",
        ),
        (b"\xff\xfe{}", "not JSON, which is UTF-8 text"),
    ],
)
def test_what_is_no_annotations_file_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as refusal:
        read_index(path)
    assert str(path) in str(refusal.value)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        read_index(tmp_path / "none.json")


def test_an_index_holds_what_the_file_says(tmp_path):
    data = with_keypoints(content())
    data["annotations"].reverse()
    annotations, images = write(tmp_path, data)
    index, problems = read_index(annotations)
    assert not problems
    assert index.class_names == ("three", "seven") and index.category_ids.tolist() == [3, 7]
    assert index.keypoint_names == ("nose", "left_hand", "right_hand")
    assert index.image_ids.tolist() == [10, 11, 12] and index.sizes.tolist() == [[40, 60]] * 3
    image = index.annotated(1, images)
    assert (image.image_id, image.size, image.file) == (11, (40, 60), images / "1.png")
    own = [a for a in data["annotations"] if a["image_id"] == 11]
    assert image.ids.tolist() == [a["id"] for a in own]
    assert image.classes.tolist() == [{3: 0, 7: 1}[a["category_id"]] for a in own]
    np.testing.assert_array_equal(
        image.boxes, [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
    )
    np.testing.assert_array_equal(image.polygon_points.ravel(), np.ravel([a["segmentation"] for a in own]))
    assert image.polygon_lengths.tolist() == [4, 4] and image.polygon_objects.tolist() == [0, 1]
    # pixel indices become continuous coordinates
    np.testing.assert_array_equal(image.keypoints[0, 0], np.add(own[0]["keypoints"][:3], [0.5, 0.5, 0]))


def test_real_annotations(shared):
    path = shared / "data/coco_people/person_keypoints_val2017.json"
    data = json.loads(path.read_text())
    index, _ = read_index(path)
    for i in range(len(index)):
        image = index.annotated(i, path.parent)
        own = [a for a in data["annotations"] if a["image_id"] == image.image_id]
        assert image.ids.tolist() == [a["id"] for a in own]
        polygons = [p for a in own for p in a["segmentation"]]
        # to the last bit
        assert image.polygon_points.ravel().tolist() == [v for p in polygons for v in p]
        assert image.polygon_lengths.tolist() == [len(p) // 2 for p in polygons]
        keypoints = np.array([a["keypoints"] for a in own], np.float64).reshape(len(own), -1, 3)
        np.testing.assert_array_equal(image.keypoints[..., 2], keypoints[..., 2])


def test_coordinates_with_more_than_two_decimals_stay_exact(tmp_path):
    data = content(images=2)
    polygons = [a["segmentation"][0] for a in data["annotations"]]
    polygons[1][3] = 12.34
    polygons[3][2] = 1 / 3
    index, _ = read_index(write(tmp_path, data)[0])
    found = np.concatenate([index.annotated(i, tmp_path).polygon_points.ravel() for i in range(2)])
    assert found.tolist() == np.concatenate(polygons).tolist()
    assert index.decimals.dtype == np.float64


def test_run_lengths_compressed_and_not(tmp_path):
    from keras_seg.data import run_lengths

    data = with_runs(content())
    index, problems = read_index(data)
    assert not problems
    image = index.annotated(0, tmp_path)
    windows = run_lengths.windows(image.run_lengths, image.run_splits, 40)
    for k, annotation in enumerate(data["annotations"][:2]):
        whole = np.zeros((40, 60), bool)
        y1, x1, y2, x2 = windows.bounds[k]
        whole[y1:y2, x1:x2] = windows.bitmap(k)
        np.testing.assert_array_equal(whole, decode_rle(annotation["segmentation"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ...}, "annotation number 0 of the list: id: is missing; must be a whole number"),
        ({"id": "a"}, "annotation number 0 of the list: id: must be a whole number, not 'a'"),
        ({"id": 101}, "annotation 101: id: is there twice"),
        ({"image_id": 99}, "annotation 100: image_id: no image has the id 99"),
        ({"image_id": 10.0}, "annotation 100: image_id: must be a whole number, not 10.0"),
        ({"category_id": 4}, "annotation 100: category_id: no category has the id 4"),
        ({"category_id": None}, "annotation 100: category_id: must be a whole number, not None"),
        ({"iscrowd": 2}, "annotation 100: iscrowd: must be 0 or 1, not 2"),
        ({"iscrowd": "no"}, "annotation 100: iscrowd: must be 0 or 1, not 'no'"),
        ({"bbox": ...}, r"annotation 100: bbox: is missing; must be \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3]}, r"annotation 100: bbox: must be \[x, y, width, height\], not \[1, 2, 3\]"),
        ({"bbox": [1, 2, 3, "4"]}, r"annotation 100: bbox: must be \[x, y, width, height\]"),
        ({"bbox": [1, 2, 3, float("nan")]}, "annotation 100: bbox: must be finite"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "annotation 100: segmentation: polygon 0 has 2 points; 3 are the least",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]]},
            "polygon 1 has 7 numbers; x, y, … come in pairs",
        ),
        (
            {"segmentation": [[1, 2, 3, 4, 5, float("inf")]]},
            "polygon 0 has coordinates that are NaN or infinite",
        ),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "polygon 0 must be a list of numbers x, y, …, not 1"),
        ({"segmentation": [["a"] * 6]}, "polygon 0 must be a list of numbers"),
        ({"segmentation": "x"}, "segmentation: polygons or run lengths expected, not 'x'"),
        ({"segmentation": {"counts": "0"}}, r"segmentation: size must be \[height, width\], not None"),
        (
            {"segmentation": {"size": [40, 60], "counts": 5}},
            "counts must be run lengths, a string or a list, not 5",
        ),
        (
            {"segmentation": {"size": [60, 40], "counts": [2400]}},
            r"run lengths of size 60x40 .* in an image of 40x60",
        ),
        (
            {"segmentation": {"size": [40, 60], "counts": [2000, 5]}},
            "the runs of counts add up to 2005 pixels, its size has 2400",
        ),
        ({"segmentation": {"size": [40, 60], "counts": [2405, -5]}}, "counts has a run below 0"),
        ({"segmentation": {"size": [40, 60], "counts": "é"}}, "counts"),
        (
            {"segmentation": {"size": [40, 60], "counts": "\x00"}},
            "counts has characters that are not of COCO's coding",
        ),
        ({"segmentation": {"size": [40, 60], "counts": "o"}}, "counts is cut off"),
        (
            {"segmentation": {"size": [40, 60], "counts": "o" * 9 + "0"}},
            "counts has a run longer than any image",
        ),
        ({"segmentation": {"size": [40, 60], "counts": ""}}, "annotation 100: segmentation: counts is empty"),
        ({"keypoints": [1, 2, 2]}, "annotation 100: keypoints: 3 numbers; the categories name 0 keypoints"),
        ({"keypoints": [1, 2, "x"]}, "annotation 100: keypoints: must be a list of x, y, visibility"),
    ],
)
def test_a_malformed_annotation_is_told_with_its_id_and_field(tmp_path, fields, message):
    annotations, _ = write(tmp_path, changed(**fields))
    with pytest.raises(ValueError, match=message) as refusal:
        read_index(annotations)
    assert str(refusal.value).startswith(str(annotations))


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        (
            [1, 2, 2],
            "annotation 100: keypoints: 3 numbers; the categories name 3 keypoints, so 9 are expected",
        ),
        ([1, 2, 2, 1, 2, 3, 0, 0, 0], "annotation 100: keypoints: visibility must be 0, 1 or 2"),
        ([1, 2, 2, 1, float("nan"), 2, 0, 0, 0], "annotation 100: keypoints: are NaN or infinite"),
    ],
)
def test_malformed_keypoints(keypoints, message):
    data = with_keypoints(content())
    data["annotations"][0]["keypoints"] = keypoints
    with pytest.raises(ValueError, match=message):
        read_index(data)


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("images", {"id": 11}, "image 11: id: is there twice"),
        ("images", {"id": None}, "image number 0 of the list: id: must be a whole number, not None"),
        ("images", {"height": 0}, "image 10: height: must be 1 or more, not 0"),
        ("images", {"width": 1.5}, "image 10: width: must be a whole number, not 1.5"),
        ("images", {"file_name": ""}, "image 10: file_name: must be a name, not ''"),
        ("categories", {"id": 3}, "category 3: id: is there twice"),
        ("categories", {"name": 5}, "category 7: name: must be a name, not 5"),
        ("categories", {"keypoints": [1]}, r"category 7: keypoints: must be a list of names, not \[1\]"),
    ],
)
def test_malformed_images_and_categories(section, fields, message):
    data = content(images=2)
    data[section][0] |= fields
    with pytest.raises(ValueError, match=message):
        read_index(data)


def test_categories_with_other_keypoints_are_refused():
    data = with_keypoints(content())
    data["categories"][1]["keypoints"] = ["tail"]
    with pytest.raises(ValueError, match="category 3: keypoints: other names than category 7 has"):
        read_index(data)


def test_many_errors_are_one_message():
    data = content(images=10)
    for annotation in data["annotations"]:
        annotation["bbox"] = None
    with pytest.raises(ValueError, match=r"20 errors:\n  annotation 100: bbox.*\n(.*\n)+  and 10 more"):
        read_index(data)


def test_useless_objects_are_dropped_and_told():
    data = content(objects=4)
    boxes = [a["bbox"] for a in data["annotations"][:4]]
    boxes[0][2] = 0
    boxes[1][:2] = [60, 3]
    boxes[2][:2] = [59.5, 3]
    boxes[3][:2] = [50, 35]
    mask = {"size": [40, 60], "counts": [2400]}
    data["annotations"][4]["segmentation"] = mask
    index, problems = read_index(data)
    assert [(p.kind, p.id, p.field) for p in problems] == [
        ("dropped", 100, "bbox"), ("dropped", 101, "bbox"), ("dropped", 102, "bbox"), ("note", 103, "bbox"),
        ("dropped", 104, "segmentation"),
    ]  # fmt: skip
    assert "has no extent" in problems[0].message and "lies outside the image of 40x60" in problems[1].message
    assert "a side of less than 1 pixels" in problems[2].message and "clipped" in problems[3].message
    assert problems[4].message == "the mask has no pixel"
    assert index.ids[index.objects(0)].tolist() == [103]
    np.testing.assert_array_equal(index.boxes[index.objects(0)], [[50, 35, 60, 40]])  # clipped
    kept, _ = read_index(data, min_box_side=0.25)
    assert kept.ids[kept.objects(0)].tolist() == [102, 103]


def test_images_without_single_objects():
    data = content()
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 11]
    data["annotations"][-1]["iscrowd"] = data["annotations"][-2]["iscrowd"] = 1
    index, _ = read_index(data)
    assert index.with_objects().tolist() == [True, False, False]
    rest = index.keep(index.with_objects())
    assert rest.image_ids.tolist() == [10] and rest.file_name(0) == "0.png" and len(rest.objects(0)) == 2
    last = index.keep(np.array([2, 0]))
    assert [last.file_name(i) for i in range(2)] == ["2.png", "0.png"]
    assert last.crowd[last.objects(0)].tolist() == [True, True]


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=5)
)


@settings(max_examples=150, deadline=None)
@given(
    section=st.sampled_from(["images", "annotations", "categories"]),
    field=st.sampled_from(
        ["id", "image_id", "category_id", "bbox", "segmentation", "keypoints", "iscrowd", "height", "name"]
    ),
    value=VALUES | st.fixed_dictionaries({"size": VALUES, "counts": VALUES}),
)
def test_whatever_a_field_holds_it_is_read_or_told(section, field, value):
    data = copy.deepcopy(SMALL)
    data[section][0][field] = value
    index, problems, entries = scan(data)
    assert (index is None) == any(p.kind == "error" for p in problems)
    assert entries == {"images": 2, "annotations": 4, "categories": 2}
    if index is not None:
        for i in range(len(index)):
            image = index.annotated(i, Path())
            assert len(image.boxes) == len(image.classes) == len(image.ids) == len(image.run_splits) - 1


SMALL = content(images=2)
