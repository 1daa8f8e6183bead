"""COCO's average precision: equal to pycocotools on real and random detections; messages of everything malformed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from keras_seg.instances import Instances
from keras_seg.metrics import coco
from keras_seg.metrics.coco_data import class_categories, read_annotations
from keras_seg.metrics.coco_picture import precision_recall_picture

BOX_FIGURES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
KEYPOINT_FIGURES = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
FILES = {
    "nuclei": ("nuclei/instances_val.json", "segm"),
    "pennfudan": ("pennfudan/instances_val.json", "segm"),
    "coco_people": ("coco_people/person_keypoints_val2017.json", "keypoints"),
}


def reference(annotations: dict, results: list[dict], iou_type: str, max_detections: int | None = None):
    """pycocotools as its documentation says; figures read from its arrays where `summarize` has 100 built in."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(annotations)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        if max_detections is not None:
            evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        if max_detections is None:
            evaluation.summarize()
    return evaluation


def check_equal(annotations: dict, results: list[dict], iou_type: str, backend: str = "pycocotools") -> None:
    figures = coco.evaluate(annotations, results, iou_type, backend=backend)
    expected = reference(annotations, results, iou_type).stats
    assert list(figures) == (KEYPOINT_FIGURES if iou_type == "keypoints" else BOX_FIGURES)
    np.testing.assert_allclose(list(figures.values()), expected, rtol=0, atol=1e-9)


@pytest.fixture(params=["pycocotools", "faster_coco_eval"])
def backend(request) -> str:
    if request.param != "pycocotools":
        pytest.importorskip(request.param)
    return request.param


def perturbed(annotations: dict, seed: int = 0) -> list[dict]:
    """Detections near the objects: shifted masks and boxes, shaken keypoints, some twice, some missing; tied scores."""
    random = np.random.default_rng(seed)
    sizes = {image["id"]: (image["height"], image["width"]) for image in annotations["images"]}
    results = []
    for annotation in annotations["annotations"]:
        for _ in range(random.integers(0, 3)):
            x, y, width, height = annotation["bbox"]
            shift = random.normal(0, 0.08, 4) * [width, height, width, height]
            box = np.array([x, y, width, height]) + shift
            box[2:] = np.maximum(box[2:], 1)
            result = {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "score": float(np.round(random.uniform(), 1 if random.uniform() < 0.5 else 6)),
                "bbox": box.tolist(),
            }
            if isinstance(annotation["segmentation"], dict):
                mask = mask_api.decode(annotation["segmentation"])
                mask = np.roll(mask, np.rint(shift[1::-1]).astype(int), axis=(0, 1))
                rle = mask_api.encode(np.asfortranarray(mask))
                result["segmentation"] = {
                    "size": list(sizes[annotation["image_id"]]),
                    "counts": rle["counts"].decode(),
                }
            if "keypoints" in annotation:
                points = np.array(annotation["keypoints"], float).reshape(-1, 3)
                points[:, :2] += random.normal(0, 0.05 * np.sqrt(width * height), (len(points), 2))
                result["keypoints"] = points.ravel().tolist()
            results.append(result)
    random.shuffle(results)
    return results


@pytest.mark.parametrize("name", FILES)
def test_detections_near_real_objects(shared: Path, name: str, backend: str):
    path, kind = FILES[name]
    annotations = json.loads((shared / "data" / path).read_text())
    annotations["images"] = annotations["images"][:12]
    kept = {image["id"] for image in annotations["images"]}
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] in kept]
    results = perturbed(annotations)
    figures = coco.evaluate(annotations, results, kind, backend=backend)
    assert 0.1 < figures["AP"] < 0.9
    check_equal(annotations, results, "bbox", backend)
    check_equal(annotations, results, kind, backend)
    # without boxes the areas are those of masks and around keypoints
    check_equal(annotations, [{k: v for k, v in r.items() if k != "bbox"} for r in results], kind, backend)


def test_four_hundred_detections_an_image(shared: Path, backend: str):
    annotations = json.loads((shared / "data/nuclei/instances_val.json").read_text())
    counts = np.bincount([a["image_id"] for a in annotations["annotations"]])
    annotations["images"] = [i for i in annotations["images"] if i["id"] == int(np.argmax(counts))]
    annotations["annotations"] = [
        a for a in annotations["annotations"] if a["image_id"] == annotations["images"][0]["id"]
    ]
    assert len(annotations["annotations"]) > 100
    results = perturbed(annotations)
    figures = coco.evaluate(annotations, results, "segm", max_detections=400, backend=backend)
    evaluation = reference(annotations, results, "segm", 400).eval
    precision, recall = evaluation["precision"][..., 0, :], evaluation["recall"][..., 0, :]
    assert figures["AP"] == pytest.approx(precision[..., 2].mean(), abs=1e-9)
    assert figures["AP50"] == pytest.approx(precision[0, ..., 2].mean(), abs=1e-9)
    assert [figures[name] for name in ("AR1", "AR10", "AR400")] == pytest.approx(
        recall.mean(axis=(0, 1)), abs=1e-9
    )
    assert figures["AP"] > coco.evaluate(annotations, results, "segm", backend=backend)["AP"]
    few = coco.evaluate(annotations, results, "segm", max_detections=5, backend=backend)
    assert "AR10" not in few and few["AR5"] == pytest.approx(5 / counts.max(), rel=0.5)


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Three images, three classes (ids with gaps, one maybe without objects), boxes of all sizes, crowds, tied scores."""
    random = np.random.default_rng(seed)
    size, classes = (150, 160), [2, 5, 9]

    def box() -> list[float]:
        side = random.choice([8, 40, 110])
        width, height = random.integers(side // 2, side, 2)
        return [
            float(v)
            for v in (random.integers(0, 160 - width), random.integers(0, 150 - height), width, height)
        ]

    def rle(box: list[float]) -> dict:
        x, y, width, height = map(int, box)
        mask = np.zeros(size, np.uint8)
        mask[max(y, 0) : y + height, max(x, 0) : x + width] = 1
        mask[y : y + 2, x : x + 2] = 0
        found = mask_api.encode(np.asfortranarray(mask))
        return {"size": list(size), "counts": found["counts"].decode()}

    annotations, results = [], []
    for image in (7, 3, 11):
        for _ in range(random.integers(0, 5)):
            where, crowd = box(), int(random.uniform() < 0.2)
            annotations.append(
                {"image_id": image, "category_id": int(random.choice(classes[:2])), "iscrowd": crowd, "bbox": where,
                 "id": 100 + len(annotations), "segmentation": rle(where), "area": float(where[2] * where[3])}
            )  # fmt: skip
            for _ in range(random.integers(0, 3)):
                near = (np.array(where) + random.integers(-3, 4, 4)).clip(0).tolist()
                results.append(
                    {"image_id": image, "category_id": annotations[-1]["category_id"], "bbox": near}
                )
        results += [
            {"image_id": image, "category_id": int(random.choice(classes)), "bbox": box()}
            for _ in range(random.integers(0, 3))
        ]
    for result in results:
        result["score"] = float(random.choice([0.25, 0.5, 0.75]))
        result["segmentation"] = rle(result["bbox"])
    images = [{"id": k, "height": size[0], "width": size[1], "file_name": f"{k}.png"} for k in (7, 3, 11)]
    categories = [{"id": k, "name": f"class {k}"} for k in classes]
    return {"images": images, "annotations": annotations, "categories": categories}, results


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_detections(seed: int):
    annotations, results = random_case(seed)
    if not results:
        return
    backends = [b for b in ("pycocotools", "faster_coco_eval") if b == "pycocotools" or _installed(b)]
    for backend in backends:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an annotation file may come out empty
            check_equal(annotations, results, "bbox", backend)
            check_equal(annotations, results, "segm", backend)


def _installed(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_by_hand():
    """Two objects; one found, a false alarm with a higher score: precision 1/2 up to recall 1/2, then 0."""
    annotations = simple()
    results = [result(bbox=[50, 50, 10, 10], score=0.9), result(score=0.8)]
    figures = coco.evaluate(annotations, results, "bbox")
    # 51 of the 101 recalls are at most 1/2
    assert figures["AP"] == pytest.approx(0.5 * 51 / 101)
    assert (figures["AR1"], figures["AR100"]) == (0, 0.5)
    assert figures["APs"] == figures["AP"] and figures["APl"] == -1


def simple() -> dict:
    """One image, two classes, two objects of the first."""
    return {
        "images": [{"id": 1, "height": 80, "width": 100, "file_name": "a.png"}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 4, "iscrowd": 0, "area": 100.0, "bbox": [0, 0, 10, 10]},
            {"id": 1, "image_id": 1, "category_id": 4, "iscrowd": 0, "area": 100.0, "bbox": [20, 20, 10, 10]},
        ],
    }


def result(**fields) -> dict:
    return {"image_id": 1, "category_id": 4, "score": 0.5, "bbox": [0, 0, 10, 10], **fields}


def test_an_object_with_the_id_0_can_be_found(backend: str):
    """pycocotools takes its id for "not matched"."""
    results = [result(), result(bbox=[20, 20, 10, 10])]
    assert coco.evaluate(simple(), results, "bbox", backend=backend)["AP"] == pytest.approx(1)


def test_nothing_found_is_0_and_says_so(backend: str):
    found = coco.score(simple(), [], "bbox", backend=backend)
    assert (found.figures["AP"], found.figures["AR100"], found.figures["APl"]) == (0, 0, -1)
    assert found.notes == ("there are no results, so that every figure is 0",)
    with pytest.warns(UserWarning, match="no results, so that every figure is 0"):
        coco.evaluate(simple(), [], "bbox", backend=backend)


def test_nothing_annotated_is_minus_1_and_says_so(backend: str):
    annotations = {**simple(), "annotations": []}
    found = coco.score(annotations, [result()], "bbox", backend=backend)
    assert set(found.figures.values()) == {-1}
    assert found.notes == ("the annotations hold no object, so that every figure is -1",)
    assert set(coco.score(annotations, [], "bbox", backend=backend).figures.values()) == {-1}


def test_figures_by_class_table_and_picture(tmp_path: Path):
    annotations, results = random_case(8)
    found = coco.score(annotations, results, "segm")
    assert list(found.per_class) == ["class 2", "class 5", "class 9"]
    aps = [figures["AP"] for figures in found.per_class.values()]
    assert min(aps[:2]) >= 0 and aps[2] == -1
    assert np.mean(aps[:2]) == pytest.approx(found.figures["AP"])
    assert found.precision.shape == (10, 101, 3)
    lines = found.table().splitlines()
    assert lines[0].split() == BOX_FIGURES and len({len(line) for line in lines}) == 1
    assert lines[1].split()[:3] == ["all", "(segm)", f"{100 * aps[0] / 2 + 100 * aps[1] / 2:.2f}"]
    assert lines[4].split()[2] == "-"
    path = precision_recall_picture(tmp_path / "curves.png", found)
    assert path.stat().st_size > 5000
    twins = {**annotations, "categories": [{"id": k, "name": "x"} for k in (2, 5, 9)]}
    assert list(coco.score(twins, results).per_class) == ["x (2)", "x (5)", "x (9)"]


def test_annotations_and_results_in_files_and_some_images(tmp_path: Path):
    annotations, results = random_case(8)
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(results))
    expected = coco.evaluate(annotations, results, "bbox")
    assert coco.evaluate(tmp_path / "truth.json", str(tmp_path / "results.json"), "bbox") == expected
    some = coco.evaluate(annotations, results, "bbox", image_ids=[3, 11])
    part = {**annotations, "images": [i for i in annotations["images"] if i["id"] != 7]}
    part["annotations"] = [a for a in annotations["annotations"] if a["image_id"] != 7]
    assert some == coco.evaluate(part, [r for r in results if r["image_id"] != 7], "bbox")


def instances(
    names: tuple[str, ...] | None = ("bird", "dog", "cat"), classes=(2, 2, 0), size=(80, 100)
) -> Instances:
    return Instances(
        boxes=np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 50, 50]]),
        scores=np.float32([0.9, 0.8, 0.95]),
        classes=np.int32(classes),
        image_size=size,
        mask_probabilities=np.ones((3, 4, 4), np.float32),
        class_names=names,
    )


def test_instances_by_the_names_of_their_classes():
    """Their third class is the category 4, their first none: it is left out, a false alarm of no class."""
    pairs = [(1, instances())]
    assert coco.evaluate(simple(), pairs, "bbox")["AP"] == pytest.approx(1)
    assert coco.evaluate(simple(), iter(pairs), "bbox")["AP"] == pytest.approx(1)
    # by order: class 0 is the category 2
    found = coco.score(simple(), [(1, instances(None, (1, 1, 0)))], "bbox")
    assert found.per_class["cat"]["AP"] == pytest.approx(1) and found.per_class["dog"]["AP"] == -1
    assert coco.evaluate(simple(), pairs, "bbox", category_ids=[4, None, 2])["AP"] == 0
    results = instances()[:2].to_coco(1, [0, 0, 4])
    with_masks = {**simple(), "annotations": [
        {**a, "segmentation": [[x, y, x + 10, y, x + 10, y + 10, x, y + 10]]}
        for a, (x, y) in zip(simple()["annotations"], [(0, 0), (20, 20)], strict=True)
    ]}  # fmt: skip
    assert coco.evaluate(with_masks, pairs, "segm") == coco.evaluate(with_masks, results, "segm")


def test_categories_of_classes():
    categories = {2: "dog", 4: "cat"}
    assert class_categories(["cat", "bird"], categories) == [4, None]
    assert class_categories(None, categories) == [2, 4]
    assert class_categories(["nucleus"], {7: "cell"}) == [7]
    with pytest.raises(
        ValueError, match="no category has the name of a class: the classes are 'a', 'b', the"
    ):
        class_categories(["a", "b"], categories)
    with pytest.raises(ValueError, match="categories 1, 2 are all called 'a'"):
        class_categories(["a", "b"], {1: "a", 2: "a"})


def test_areas_and_crowds_that_are_not_given(shared: Path):
    annotations = json.loads((shared / "data/nuclei/instances_val.json").read_text())
    annotations["images"] = annotations["images"][:1]
    annotations["annotations"] = [
        a for a in annotations["annotations"] if a["image_id"] == annotations["images"][0]["id"]
    ]
    results = perturbed(annotations)
    expected = coco.evaluate(annotations, results, "segm")
    for annotation in annotations["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    assert coco.evaluate(annotations, results, "segm") == expected


def test_uncompressed_run_lengths_and_polygons():
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    runs = {"size": [80, 100], "counts": [0, *[10, 70] * 9, 10, 70 + 80 * 90]}
    for segmentation in (square, runs):
        annotations = simple()
        for annotation in annotations["annotations"]:
            annotation["segmentation"] = square
        results = [result(segmentation=segmentation), result(segmentation=segmentation, bbox=None)]
        assert coco.score(annotations, results, "segm").figures["AR100"] == 1


def people(keypoints: int = 17) -> dict:
    annotations = simple()
    for annotation in annotations["annotations"]:
        annotation["keypoints"] = [5.0, 5.0, 2] * keypoints
    return annotations


def test_keypoints_of_another_number_need_sigmas():
    three = result(keypoints=[5, 5, 1] * 3)
    with pytest.raises(
        ValueError, match="annotations: image 1 has an object with 3 keypoints, not 17; give sigmas"
    ):
        coco.evaluate(people(3), [three], "keypoints")
    figures = coco.evaluate(people(3), [three, three], "keypoints", sigmas=[0.1] * 3)
    assert figures["AR"] == 1 and list(figures) == KEYPOINT_FIGURES
    with pytest.raises(ValueError, match="results: image 1 has an object with 3 keypoints, not 17"):
        coco.evaluate(people(), [three], "keypoints")
    with pytest.raises(ValueError, match="sigmas are positive, one a keypoint"):
        coco.evaluate(people(3), [three], "keypoints", sigmas=[0.1, -1, 0])


def test_categories_without_keypoints_are_left_out():
    annotations = people()
    annotations["annotations"].append(
        {"id": 9, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25}
    )
    assert list(read_annotations(annotations, "keypoints").categories.values()) == ["cat"]


def changed(field: str, value) -> dict:
    return {**simple(), field: value}


def with_annotation(**fields) -> dict:
    annotations = simple()
    annotations["annotations"][1] = {
        k: v for k, v in {**annotations["annotations"][1], **fields}.items() if v is not ...
    }
    return annotations


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], r"annotations are an object with images, annotations and categories; got list \[\]"),
        (changed("images", None), 'annotations need a list "images"; got NoneType None'),
        (changed("images", [3]), "image number 0 of the list needs an integer id; got int 3"),
        (
            changed("categories", [{"name": "cat"}]),
            "category number 0 of the list needs an integer id; id is None",
        ),
        (changed("images", simple()["images"] * 2), "two of the image records have the id 1"),
        (changed("annotations", simple()["annotations"] * 2), "two of the annotation records have the id 0"),
        (
            with_annotation(image_id=5),
            r"annotation 1 \(image 5\): image_id 5 is not among the annotations' 1",
        ),
        (with_annotation(category_id="4"), "category_id '4' is not among the annotations' 2, 4"),
        (
            with_annotation(bbox=[0, 0, 5]),
            r"annotation 1 \(image 1\): bbox takes x, y, width, height .* got \[0, 0, 5\]",
        ),
        (with_annotation(bbox=[0, 0, -5, 5]), "bbox takes"),
        (with_annotation(bbox=[0, 0, float("nan"), 5]), "bbox takes"),
        (with_annotation(bbox=...), "bbox takes .* got None"),
        (with_annotation(area="big"), "area must be a finite number, got 'big'"),
    ],
)
def test_messages_of_annotations(annotations, message):
    with pytest.raises(ValueError, match=message):
        coco.evaluate(annotations, [result()], "bbox")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "segmentation takes a list of polygons, or run lengths; got NoneType None"),
        ([[1, 2, 3, 4]], "a polygon takes x, y of at least 3 points, all finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "a polygon takes"),
        ({"size": [80, 100], "counts": "4"}, "segmentation: run lengths: the runs add up to 4 pixels"),
        (
            {"size": [80, 100], "counts": [[1], 2]},
            "segmentation: run lengths: counts is text or a list of integers",
        ),
        ({"size": [100, 80], "counts": [8000]}, "segmentation of 100 x 80 pixels .* the image has 80 x 100"),
    ],
)
def test_messages_of_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=r"annotation 1 \(image 1\): " + message):
        annotations = with_annotation(segmentation=segmentation)
        read_annotations({**annotations, "annotations": annotations["annotations"][1:]}, "segm")
    if segmentation is not None:
        with pytest.raises(ValueError, match=r"result 0 \(image 1\): " + message):
            coco.evaluate({**simple(), "annotations": []}, [result(segmentation=segmentation)], "segm")


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"annotations": []}, "results are a list of detections; got dict"),
        ([3], "result 0: takes a dictionary in COCO's format, or a pair .* got int 3"),
        ([result(), result(image_id=9)], "result 1: image_id 9 is not among the annotations' 1"),
        ([result(image_id="1")], "result 0: image_id '1' is not among"),
        ([result(category_id=1)], "result 0: category_id 1 is not among the annotations' 2, 4"),
        ([result(score=None)], r"result 0 \(image 1\): score must be a finite number, got None"),
        ([result(score=float("nan"))], "score must be a finite number, got nan"),
        ([result(bbox=[0, 0, 5, -1])], "bbox takes x, y, width, height"),
        ([result(bbox=None)], "no \"bbox\", which an evaluation of 'bbox' needs; these results are for none"),
        ([result(bbox=None, keypoints=[1, 2, 3])], "no \"bbox\", .* these results are for 'keypoints'"),
        ([(9, instances())], "image 9: image_id 9 is not among"),
        ([(1, instances()), (1, instances())], "image 1: occurs twice"),
        ([(1, instances(size=(100, 80)))], "Instances are of an image of 100 x 80 pixels .* the annotations say 80 x 100"),
        ([(1, instances(None))], "image 1: class 2 has no category, there are 2: give category_ids"),
        ([(1, instances(("a", "b", "c")))], "no category has the name of a class"),
    ],
)  # fmt: skip
def test_messages_of_results(results, message):
    with pytest.raises(ValueError, match=message):
        coco.evaluate(simple(), results, "bbox")


@pytest.mark.parametrize("iou_type", ["segm", "keypoints"])
def test_results_of_another_kind(iou_type: str):
    with pytest.raises(
        ValueError, match=f"which an evaluation of '{iou_type}' needs; these results are for 'bbox'"
    ):
        coco.evaluate({**people(), "annotations": []}, [result()], iou_type)


def test_messages_of_files_and_options(tmp_path: Path, monkeypatch):
    (tmp_path / "broken.json").write_text('[{"image_id": 1,]')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match=r"broken.json: not JSON: .* \(line 1, column 17\)"):
        coco.evaluate(simple(), tmp_path / "broken.json", "bbox")
    with pytest.raises(ValueError, match="binary.json: not JSON: not a text file"):
        coco.evaluate(tmp_path / "binary.json", [], "bbox")
    with pytest.raises(FileNotFoundError, match="none.json: no such file of results"):
        coco.evaluate(simple(), tmp_path / "none.json", "bbox")
    with pytest.raises(TypeError, match="results: takes a path or what a JSON file holds; got int 3"):
        coco.evaluate(simple(), 3, "bbox")
    for options, message in (
        ({"iou_type": "mask"}, "iou_type must be one of 'bbox', 'segm', 'keypoints', got 'mask'"),
        ({"max_detections": 0}, "max_detections must be a positive integer, got 0"),
        (
            {"backend": "numpy"},
            "backend must be one of 'auto', 'pycocotools', 'faster_coco_eval', got 'numpy'",
        ),
        ({"image_ids": [1, 3]}, "image_ids has 3, which is not among the annotations' images"),
    ):
        with pytest.raises(ValueError, match=message):
            coco.evaluate(simple(), [result()], **{"iou_type": "bbox", **options})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ModuleNotFoundError, match="pip install faster-coco-eval, or leave it out for pycocotools"
    ):
        coco.evaluate(simple(), [result()], "bbox", backend="faster_coco_eval")
    assert coco.evaluate(simple(), [result()], "bbox")["AR100"] == 0.5  # falls back
