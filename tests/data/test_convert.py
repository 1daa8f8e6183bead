"""Label images, LabelMe's and VIA's files to COCO JSON."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from keras_seg.data.coco_index import read_index
from keras_seg.data.coco_json import label_annotations
from keras_seg.data.label_images import from_label_images
from keras_seg.data.labelme import from_labelme
from keras_seg.data.via import from_via
from keras_seg.ops.rle import decode_rle


def image(path: Path, size: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size, np.uint8)).save(path)
    return path


# -- label images ----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    labels=npst.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32]),
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 0, 1, 2, 5, 200]),
    )
)
def test_annotations_of_labels_are_their_masks(labels):
    annotations = label_annotations(labels, 3, 11)
    numbers = [n for n in np.unique(labels).tolist() if n]
    assert [a["id"] for a in annotations] == list(range(11, 11 + len(numbers)))
    for number, annotation in zip(numbers, annotations, strict=True):
        mask = labels == number
        np.testing.assert_array_equal(decode_rle(annotation["segmentation"]), mask)
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert annotation["bbox"] == box and annotation["area"] == mask.sum() and annotation["image_id"] == 3


def label(path: Path, dtype: type = np.uint16) -> np.ndarray:
    labels = np.zeros((20, 30), dtype)
    labels[2:8, 3:9], labels[10:15, 20:28] = 4, 250
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, labels)
    else:
        Image.fromarray(labels).save(path)
    return labels


def test_folders_of_label_images(tmp_path, run):
    for name in ("a", "b"):
        image(tmp_path / f"images/{name}.png")
    label(tmp_path / "labels/a_mask.tif"), label(tmp_path / "labels/b_mask.png", np.uint8)
    line = [
        "convert",
        "labels",
        tmp_path / "images",
        tmp_path / "labels",
        tmp_path / "out.json",
        "--label-suffix",
        "_mask",
    ]
    status, out, _ = run(*line, "--class", "cell")
    assert status == 0 and out == f"{tmp_path / 'out.json'}: 2 images, 4 annotations\n"
    index, problems = read_index(tmp_path / "out.json")
    assert (
        not problems
        and index.class_names == ("cell",)
        and [index.file_name(k) for k in (0, 1)] == ["a.png", "b.png"]
    )
    np.testing.assert_array_equal(index.boxes[:2], [[3, 2, 9, 8], [20, 10, 28, 15]])
    status, _, error = run(*line)
    assert status == 2 and "out.json: exists already; overwrite=True (--overwrite) replaces it" in error
    assert run(*line, "--overwrite")[0] == 0


def test_stacks_of_label_images(tmp_path):
    pages = np.random.default_rng(0).integers(0, 4000, (3, 20, 30), np.uint16)
    tifffile.imwrite(tmp_path / "volume.tif", pages, photometric="minisblack")
    labels = np.stack([label(tmp_path / "one.tif")] * 3)
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    converted = from_label_images(tmp_path / "volume.tif", tmp_path / "labels.tif", tmp_path / "out.json")
    assert (converted.images, converted.annotations) == (3, 6)
    data = json.loads((tmp_path / "out.json").read_text())
    assert [r["file_name"] for r in data["images"]] == ["00000.tif", "00001.tif", "00002.tif"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/00002.tif"), pages[2])
    with pytest.raises(FileExistsError, match="the folder for the pages exists already"):
        (tmp_path / "out.json").unlink()
        from_label_images(tmp_path / "volume.tif", tmp_path / "labels.tif", tmp_path / "out.json")
    with pytest.raises(
        ValueError, match=r"labels of shape \[20, 30\] for images|labels of shape \[1, 20, 30\] for images"
    ):
        from_label_images(tmp_path / "volume.tif", tmp_path / "one.tif", tmp_path / "other.json")


def test_label_images_that_do_not_fit(tmp_path):
    images, labels, out = tmp_path / "images", tmp_path / "labels", tmp_path / "out.json"
    image(images / "a.png"), image(images / "b.png"), label(labels / "b.tif"), label(labels / "c.tif")
    with pytest.raises(ValueError, match=r"a.png: no labels a\.\*\n.*c.tif: no image of that name"):
        from_label_images(images, labels, out)
    (images / "a.png").unlink(), (labels / "c.tif").unlink()
    image(images / "b.png", (20, 31))
    with pytest.raises(
        ValueError, match=r"b.tif: 20x30 pixels \(height x width\), its image b.png has 20x31"
    ):
        from_label_images(images, labels, out)
    image(images / "b.png")
    tifffile.imwrite(labels / "b.tif", np.full((20, 30), -2, np.int32))
    with pytest.raises(ValueError, match="b.tif: the label -2"):
        from_label_images(images, labels, out)
    tifffile.imwrite(labels / "b.tif", np.full((20, 30), 0.5, np.float32))
    with pytest.raises(ValueError, match="b.tif: 600 labels are no whole numbers"):
        from_label_images(images, labels, out)
    with pytest.raises(ValueError, match="the output must end in .json"):
        from_label_images(images, labels, tmp_path / "out.txt")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        from_label_images(tmp_path / "nowhere", labels, out)
    with pytest.raises(ValueError, match="one folder are told apart by label_suffix"):
        from_label_images(images, images, out)
    assert not out.exists()


# -- LabelMe ---------------------------------------------------------------------------------------------------


def labelme(folder: Path, name: str = "a", shapes: list | None = None, **fields) -> Path:
    image(folder / f"{name}.png")
    polygon = {"label": "cat", "points": [[1, 2], [9, 2], [9, 8]], "shape_type": "polygon", "group_id": None}
    content = {
        "imagePath": f"{name}.png",
        "imageHeight": 20,
        "imageWidth": 30,
        "shapes": [polygon] if shapes is None else shapes,
    }
    (folder / f"{name}.json").write_text(json.dumps({**content, **fields}))
    return folder / f"{name}.json"


def shape(kind: str, points: list, label: str = "cat", **fields) -> dict:
    return {"label": label, "shape_type": kind, "points": points, **fields}


def test_labelme_files(tmp_path, run):
    part = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).save(part, format="PNG")
    shapes = [
        shape("polygon", [[1, 2], [9, 2], [9, 8]]),
        shape("rectangle", [[12, 9], [4, 3]], "dog"),
        shape("circle", [[10, 10], [14, 10]]),
        shape("polygon", [[1, 2], [3, 2], [3, 8]], group_id=1),
        shape("polygon", [[11, 2], [13, 2], [13, 8]], group_id=1),
        shape("mask", [[5, 6], [6, 7]], mask=base64.b64encode(part.getvalue()).decode()),
        shape("point", [[5, 6]]),
    ]
    labelme(tmp_path / "set/below", shapes=shapes, imageHeight=None)
    labelme(tmp_path / "set", "b", imagePath="..\\set\\b.png")
    status, out, _ = run("convert", "labelme", tmp_path / "set", tmp_path / "out.json")
    assert (
        status == 0
        and "2 images, 6 annotations\nleft out, 1:" in out
        and "shape 6: a point (cat) has no area" in out
    )
    data = json.loads((tmp_path / "out.json").read_text())
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    assert sorted(r["file_name"] for r in data["images"]) == ["b.png", "below/a.png"]
    index, problems = read_index(tmp_path / "out.json")
    assert not problems
    place = [index.file_name(k) for k in range(2)].index("below/a.png")
    rows = index.objects(place)
    np.testing.assert_allclose(
        index.boxes[rows],
        [[1, 2, 9, 8], [4, 3, 12, 9], [6, 6, 14, 14], [1, 2, 13, 8], [5, 6, 7, 8]],
        atol=0.01,
    )
    assert np.diff(index.polygon_splits)[rows].tolist() == [1, 1, 1, 2, 0]
    areas = {a["id"]: a["area"] for a in data["annotations"]}
    np.testing.assert_allclose(
        [areas[i] for i in index.ids[rows].tolist()], [24, 48, 16 * np.pi, 12, 3], rtol=0.01
    )
    mask = next(a for a in data["annotations"] if isinstance(a["segmentation"], dict))
    assert np.argwhere(decode_rle(mask["segmentation"])).tolist() == [[6, 6], [7, 5], [7, 6]]
    assert all((tmp_path / "set" / r["file_name"]).exists() for r in data["images"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": [{"points": []}]}, "a.json: shape 0: must have a label"),
        (
            {"shapes": [shape("polygon", [[1, 2], [3, 4]])]},
            "a.json: shape 0: a polygon of 2 points; 3 are the least",
        ),
        ({"shapes": [shape("polygon", [[1, "x"]])]}, "a.json: shape 0: points: must be finite numbers"),
        ({"shapes": [shape("polygon", None)]}, "a.json: shape 0: points: must be finite numbers, got None"),
        ({"shapes": [shape("rectangle", [[1, 2]])]}, "a.json: shape 0: points: a rectangle has two points"),
        ({"shapes": [shape("star", [[1, 2], [3, 4]])]}, "a.json: shape 0: shape_type: 'star' is not known"),
        (
            {"shapes": [shape("mask", [[1, 2], [3, 4]], mask="!")]},
            "a.json: shape 0: mask: not a picture in base64",
        ),
        ({"shapes": "none"}, "no LabelMe files"),
    ],
)
def test_malformed_labelme_files(tmp_path, change, message):
    labelme(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        from_labelme(tmp_path, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_labelme_classes_and_missing_images(tmp_path):
    labelme(tmp_path), labelme(tmp_path, "b")
    with pytest.raises(ValueError, match="label 'cat' is none of the classes dog, bird"):
        from_labelme(tmp_path, tmp_path / "out.json", class_names=["dog", "bird"])
    from_labelme(tmp_path, tmp_path / "out.json", class_names=["dog", "cat"])
    assert json.loads((tmp_path / "out.json").read_text())["annotations"][0]["category_id"] == 2
    for name in "ab":
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 2 images are missing:\n.*a.png\n.*b.png"):
        from_labelme(tmp_path, tmp_path / "other.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.json: not JSON"):
        from_labelme(tmp_path, tmp_path / "other.json")


# -- VIA -------------------------------------------------------------------------------------------------------


def region(shape: dict, **attributes) -> dict:
    return {"shape_attributes": shape, "region_attributes": attributes}


POLYGON = {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [2, 2, 8]}


def via(folder: Path, regions: list | dict, *, whole_project: bool = True) -> Path:
    image(folder / "images/a.png")
    entries = {"a.png123": {"filename": "a.png", "size": 123, "regions": regions, "file_attributes": {}}}
    (folder / "via.json").write_text(
        json.dumps({"_via_img_metadata": entries, "_via_settings": {}} if whole_project else entries)
    )
    return folder / "via.json"


@pytest.mark.parametrize("version", [1, 2])
def test_via_projects(tmp_path, run, version):
    regions = [
        region(POLYGON, kind="cat"),
        region({"name": "rect", "x": 3, "y": 4, "width": 5, "height": 6}, kind={"dog": True, "cat": False}),
        region({"name": "circle", "cx": 10, "cy": 10, "r": 4}, kind="cat"),
        region({"name": "ellipse", "cx": 10, "cy": 10, "rx": 4, "ry": 2, "theta": np.pi / 2}, kind="cat"),
        region({"name": "point", "cx": 10, "cy": 10}, kind="cat"),
    ]
    if version == 1:
        project = via(tmp_path, {str(k): r for k, r in enumerate(regions)}, whole_project=False)
    else:
        project = via(tmp_path, regions)
    status, out, _ = run("convert", "via", project, tmp_path / "images", tmp_path / "out.json")
    assert status == 0 and "1 images, 4 annotations" in out and "a.png, region 4: a point has no area" in out
    index, problems = read_index(tmp_path / "out.json")
    assert not problems and index.class_names == ("cat", "dog") and index.sizes.tolist() == [[20, 30]]
    expected = [[1, 2, 9, 8], [3, 4, 8, 10], [6, 6, 14, 14], [8, 6, 12, 14]]
    np.testing.assert_allclose(index.boxes[index.objects(0)], expected, atol=0.01)
    assert index.classes.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("regions", "options", "message"),
    [
        (
            [region(POLYGON, a="x", b="y")],
            {},
            r"regions have the attributes a, b: say which is the class \(attribute\)",
        ),
        ([region(POLYGON, a="")], {}, "a.png, region 0: region_attributes: a must name one class, got ''"),
        ([region(POLYGON, a="x")], {"attribute": "b"}, "region_attributes: b must name one class, got None"),
        ([region({"name": "heart"})], {}, "region 0: shape_attributes: name 'heart' is not known"),
        ([region({**POLYGON, "all_points_y": [1]})], {}, "region 0: 3 all_points_x and 1 all_points_y"),
        (
            [region({"name": "rect", "x": 1, "y": 2, "width": "w", "height": 3})],
            {},
            "region 0: width: must be finite numbers",
        ),
        ([{"region_attributes": {}}], {}, "region 0: has no shape_attributes"),
    ],
)
def test_malformed_via_projects(tmp_path, regions, options, message):
    project = via(tmp_path, regions)
    with pytest.raises(ValueError, match=message):
        from_via(project, tmp_path / "images", tmp_path / "out.json", **options)


def test_via_needs_a_project_and_its_images(tmp_path):
    project = via(tmp_path, [region(POLYGON)])
    from_via(project, tmp_path / "images", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["categories"] == [{"id": 1, "name": "object"}]
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are missing:\n.*a.png"):
        from_via(project, tmp_path / "elsewhere", tmp_path / "b.json")
    project.write_text("[1]")
    with pytest.raises(ValueError, match=r"via.json: no project or JSON export of VIA"):
        from_via(project, tmp_path / "images", tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="none.json: no such file"):
        from_via(tmp_path / "none.json", tmp_path / "images", tmp_path / "b.json")
