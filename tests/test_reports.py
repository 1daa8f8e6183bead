"""Pages of evaluations: what they say, that nothing in them is taken for HTML, and which images come first."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_seg import evaluate
from keras_seg.data.sample import Sample
from keras_seg.detector_report import PANEL_SIDE, outlined, write_detector_report
from keras_seg.error_pictures import FALSE, MISSED, RIGHT
from keras_seg.metrics import cell_tracking, isbi
from keras_seg.metrics.iou import mean_iou
from keras_seg.ops.rle import encode_mask
from keras_seg.unet_report import pixel_curve, write_unet_report

SIDE = 40
NASTY = "a&b<img src=x onerror=alert(1)>\"'.png"


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and the rows of its last table."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.rows, self.text = [], [], []
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text.append(data)
        if self.inside in ("td", "th", "a", "button") and self.rows and data.strip():
            self.rows[-1].append(data)

    def sources(self) -> list[str]:
        return [
            a[key] for _, a in self.tags for key in ("src", "href") if key in a and not a[key].startswith("#")
        ]


def square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def data(tmp_path) -> tuple[dict, list[dict], Path]:
    """Annotations of three images, results that are right in the first, false in the second, none in the third."""
    names = {1: "good.png", 2: NASTY, 3: "far/none.png"}
    folder = tmp_path / "images"
    (folder / "far").mkdir(parents=True)
    for name in names.values():
        Image.fromarray(np.full((SIDE, SIDE), 60, np.uint8)).save(folder / name)
    objects = {1: square(2, 2, 10), 2: square(20, 20, 10), 3: square(5, 5, 10)}
    annotations = {
        "images": [{"id": k, "file_name": name, "height": SIDE, "width": SIDE} for k, name in names.items()],
        "categories": [{"id": 1, "name": "<i>cell</i>"}, {"id": 2, "name": "other"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 0, "area": 100,
             "segmentation": encode_mask(mask)}
            for k, mask in objects.items()
        ],
    }  # fmt: skip
    results = [
        {
            "image_id": k,
            "category_id": 1,
            "score": score,
            "bbox": [2, 2, 10, 10],
            "segmentation": encode_mask(square(2, 2, 10)),
        }
        for k, score in ((1, 0.9), (2, 0.8), (2, 0.3))
    ]
    return annotations, results, folder


def test_a_detectors_page(data, tmp_path):
    annotations, results, images = data
    scores = evaluate.score(results, annotations, ["bbox", "segm"])
    page = write_detector_report(
        tmp_path / "report",
        results,
        annotations,
        images,
        scores,
        title="<script>",
        facts=[("data", NASTY)],
        pictures=2,
    )
    parsed = Parsed(page)
    text = "".join(parsed.text)
    assert page.name == "index.html" and NASTY in text and "<i>cell</i>" in text and "<script>" in text
    # what is shown is text: no tag of theirs, and one script, ours
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 1 and "i" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    for source in parsed.sources():
        assert re.fullmatch(r"[a-z0-9_./]+", source) and (page.parent / source).is_file(), source
    rows = [row for row in parsed.rows if row and row[0].endswith(".png")]
    assert [row[0] for row in rows] == [NASTY, "far/none.png", "good.png"]
    assert rows[0][1:] == ["0.0", "0.0", "0.0", "1", "1", "1", "1", "-"]
    assert rows[1][1:] == ["0.0", "-", "0.0", "1", "0", "1", "0", "-"]
    assert rows[2][1:] == ["100.0", "100.0", "100.0", "1", "1", "0", "0", "100.0"]
    assert (
        "Pictures of the first 2 of 3 images." in text
        and f"{100 * scores['segm'].figures['AP50']:.1f}" in text
    )
    pictures = sorted(file.name for file in (page.parent / "images").iterdir())
    assert pictures == [f"000{n}_{kind}.jpg" for n in (1, 2) for kind in ("found", "image", "there")]
    # enlarged by a whole number, outlines in their colours
    found, there = (
        np.asarray(Image.open(page.parent / f"images/0001_{kind}.jpg")).astype(int)
        for kind in ("found", "there")
    )
    factor = PANEL_SIDE // 2 // SIDE
    assert found.shape == (factor * SIDE, factor * SIDE, 3)
    centre = factor // 2
    assert np.abs(found[2 * factor + centre, 5 * factor + centre] - FALSE).max() < 30
    assert np.abs(there[20 * factor + centre, 25 * factor + centre] - MISSED).max() < 30


def test_a_page_by_boxes(data, tmp_path):
    annotations, results, images = data
    for one in (*annotations["annotations"], *results):
        del one["segmentation"]
    scores = evaluate.score(results, annotations, ["bbox"])
    page = write_detector_report(tmp_path / "report", results, annotations, images, scores, iou=0.5)
    assert "box IoU 0.5 or more" in page.read_text()
    with pytest.raises(ValueError, match="pictures must be 0 or more, got -1"):
        write_detector_report(tmp_path / "report", results, annotations, images, scores, pictures=-1)
    (images / "good.png").unlink()
    with pytest.raises(FileNotFoundError, match="good.png"):
        write_detector_report(tmp_path / "report", results, annotations, images, scores)


def test_outlines_of_large_pictures_stay_to_be_seen():
    mask = np.zeros((2100, 3000), bool)
    mask[500:1500, 1000:2000] = True
    drawn = outlined(Image.new("RGB", (3000, 2100)), [({"segmentation": encode_mask(mask)}, RIGHT)], "segm")
    assert max(drawn.size) == PANEL_SIDE
    assert np.abs(np.asarray(drawn)[round(502 * PANEL_SIDE / 3000), 500].astype(int) - RIGHT).max() < 40


def sample(name: str, label: np.ndarray, instances: np.ndarray | None = None) -> Sample:
    image = np.random.default_rng(0).uniform(0, 255, (*label.shape, 1)).astype(np.float32)
    instances = np.maximum(label, 0) if instances is None else instances
    return Sample(
        name, image, label.astype(np.int32), np.ones(label.shape, np.float32), instances.astype(np.int32)
    )


def as_probabilities(classes: np.ndarray, count: int = 2) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[classes] * 0.8 + 0.1 / (count - 1) * (count > 1)


def cells(*walls: int) -> np.ndarray:
    label = np.ones((SIDE, SIDE), int)
    label[:, list(walls)] = 0
    return label


def test_a_page_of_isbi_slices(tmp_path):
    samples = [sample("slice 0", cells(20)), sample("slice 1", cells(20))]
    seen = [as_probabilities(cells(20)), as_probabilities(cells(10, 30))]
    figures = isbi.evaluate(
        np.stack([p[..., 1] for p in seen]), np.stack([s.label for s in samples]), ["rand_error"]
    )
    page = write_unet_report(
        tmp_path / "r", samples, seen, figures, reader="isbi", class_names=["wall", "cell"]
    )
    rows = [row for row in Parsed(page).rows if row and row[0].startswith("slice")]
    assert [row[0] for row in rows] == ["slice 1", "slice 0"]
    alone = isbi.evaluate(
        (seen[1][..., 1] > 0.5).astype(float), samples[1].label, ["rand_error", "v_rand", "pixel_error"]
    )
    expected = [f"{100 * alone[name]:.1f}" for name in ("rand_error", "v_rand", "pixel_error")]
    assert rows[0][1:4] == expected and float(rows[0][4]) == pytest.approx(100 * 3 / SIDE, abs=0.05)
    assert rows[1][1:] == ["0.0", "100.0", "0.0", "0.0"]
    differences = np.asarray(Image.open(page.parent / "images/0001_differences.jpg")).astype(int)
    factor = PANEL_SIDE // 2 // SIDE
    for column, colour in ((20, FALSE), (10, MISSED)):
        assert np.abs(differences[100, column * factor + factor // 2] - colour).max() < 30


def test_a_page_of_cell_tracking_frames(tmp_path):
    blank, two = np.zeros((SIDE, SIDE), int), np.zeros((SIDE, SIDE), int)
    two[2:12, 2:12], two[20:30, 20:30] = 1, 2
    samples = [sample("t0", (two > 0).astype(int), two), sample("t1", blank)]
    seen = [as_probabilities((two == 1).astype(int)), as_probabilities(blank)]
    score = cell_tracking.seg([(two == 1).astype(int)], [two])["SEG"]
    page = write_unet_report(
        tmp_path / "r", samples, seen, {"seg": score}, reader="cell_tracking", class_names=["no", "cell"]
    )
    rows = [row for row in Parsed(page).rows if row and row[0] in ("t0", "t1")]
    assert rows[0] == ["t0", "50.0", "2", "1", "1", f"{100 * 100 / SIDE**2:.1f}"]
    assert rows[1] == ["t1", "-", "0", "0", "0", "0.0"] and "0.5000" in page.read_text()


def test_a_page_of_a_folder(tmp_path):
    label = np.zeros((SIDE, SIDE), int)
    label[:10], label[10:20], label[30:] = 1, 2, -1
    found = label.clip(0)
    found[:5] = 2
    samples, seen = [sample("x<y.tif", label)], [as_probabilities(found, 3)]
    page = write_unet_report(
        tmp_path / "r", samples, seen, {"mean_iou": 0.5}, reader="folder", class_names=["ground", "a", "b"]
    )
    parsed = Parsed(page)
    rows = {row[0]: row[1:] for row in parsed.rows if row}
    assert rows["x<y.tif"] == [f"{100 * mean_iou([found], [label], 3):.1f}", f"{100 * 5 / 30:.1f}"]
    assert rows["a"] == ["50.0", "100.0", "50.0", "66.7", "400"]
    assert rows["b"] == ["66.7", "66.7", "100.0", "80.0", "400"]
    with pytest.raises(ValueError, match="2 class names, for 3 classes"):
        write_unet_report(tmp_path / "r", samples, seen, {}, reader="folder", class_names=["ground", "a"])
    with pytest.raises(ValueError, match="0 samples and 1 predictions"):
        write_unet_report(tmp_path / "r", [], seen, {}, reader="folder", class_names=["ground", "a", "b"])


def test_the_curve_of_pixels_by_hand():
    label = np.array([[1, 1, 0, 0, -1]])
    probability = np.float32([[0.9, 0.3, 0.6, 0.0, 1.0]])
    curve = pixel_curve([sample("a", label)], [np.stack([1 - probability, probability], axis=-1)], 1)
    for threshold, precision, recall in (
        (0, 2 / 3, 1),
        (0.5, 1 / 2, 1 / 2),
        (0.75, 1, 1 / 2),
        (255 / 256, 1, 0),
    ):
        np.testing.assert_allclose(curve[:, round(threshold * 256)], [precision, recall])


def test_pages_of_the_commands(run, data, tmp_path, monkeypatch):
    annotations, results, images = data
    monkeypatch.chdir(tmp_path)
    Path("truth.json").write_text(json.dumps(annotations))
    Path("results.json").write_text(json.dumps(results))
    line = (
        "evaluate",
        "results.json",
        "--data",
        "truth.json",
        "--images",
        images,
        "--report",
        "report",
        "--json",
    )
    status, out, error = run(*line, "--report-pictures", 1)
    assert status == 0 and json.loads(out)["segm"] and error == "keras-seg: report: report/index.html\n"
    parsed = Parsed(Path("report/index.html"))
    assert "results.json on truth" in "".join(parsed.text) and len(list(Path("report/images").iterdir())) == 3
