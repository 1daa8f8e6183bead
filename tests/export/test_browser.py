"""The browser page in a headless Chromium, as a person uses it, against the numbers in Python."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from PIL import Image

import keras_seg
from keras_seg import models, zoo
from keras_seg.data.images import read_stack
from keras_seg.segment import instances
from keras_seg.weights import save_weights

# `keras_seg.export.browser` is the function of that name
browser = importlib.import_module("keras_seg.export.browser")
SOURCE = Path(__file__).resolve().parents[2] / "export" / "browser"
NUMBERS = 2e-5  # of float32 probabilities: another order of sums, and fused multiplications in WebAssembly
HALF = 5e-3  # with kernels stored in half precision; 2e-5 on average
BOXES, SCORES = 0.5, 1e-2  # pixels; kernels in half precision
PHONE = {
    "viewport": {"width": 360, "height": 640},
    "hasTouch": True,
    "isMobile": True,
    "deviceScaleFactor": 2,
}


class Session:
    """A page in Chromium: `session("click", "#stop")` is Playwright's page.click; others are in test/session.mjs."""

    def __init__(self, script: Path, chromium: str) -> None:
        self._process = subprocess.Popen(
            ["node", str(script), chromium], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "the browser ended"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def text(self, selector: str) -> str:
        return self("textContent", selector).strip()

    def segment(self, path: Path) -> str:
        """Chooses a file and waits for its result. Returns the error, "" for none."""
        self("setInputFiles", "#file", str(path))
        self("finished")
        return self.error()

    def error(self) -> str:
        return self.text("#error") if self("isVisible", "#error") else ""

    def probabilities(self, folder: Path) -> np.ndarray:
        name = self("download", "#save-numbers", str(folder / "numbers.npy"))
        assert name.endswith(".npy")
        return np.load(folder / "numbers.npy")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def chromium() -> str:
    try:
        return browser.chromium_program()
    except browser.NotInstalled as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, chromium) -> Path:
    """The page's sources with npm's packages, in a cache of its own, and test/ beside them."""
    home = tmp_path_factory.mktemp("cache")
    with mock.patch.object(browser, "cache_folder", lambda: home):
        try:
            folder = browser.page_workshop()
        except browser.NotInstalled as missing:
            pytest.skip(str(missing))
        shutil.copytree(SOURCE / "test", folder / "test")
        yield folder


@pytest.fixture(scope="module")
def networks() -> dict[str, models.UNet]:
    """Small ones with weights that tell classes apart."""
    keras.utils.set_random_seed(0)
    same = models.unet(
        input_channels=1, classes=2, class_names=["membrane", "cell"], depth=2, base_channels=4, padding="same",
        normalization="batch", rotations=7, name="small_same",
    )  # fmt: skip
    valid = models.unet(
        input_channels=3, classes=3, depth=2, base_channels=4, padding="valid", name="small_valid"
    )
    for model in (same, valid):
        for variable in model.get_layer("logits").weights:
            variable.assign(4 * variable)
    return {model.name: model for model in (same, valid)}


@pytest.fixture(scope="module")
def built(workshop, networks, tmp_path_factory) -> Path:
    """The page with the small networks; the single file with one of them."""
    out = tmp_path_factory.mktemp("pages")
    small = {"height": 64, "width": 64, "quantize": None}
    example = _picture(60, 50)
    keras_seg.export.browser(networks["small_same"], out / "alone.html", **small)
    keras_seg.export.browser(
        networks["small_same"], out / "page", example=example, credit="made here", **small
    )
    (out / "page" / "CNAME").write_text("cells.example.org")
    keras_seg.export.browser(networks["small_valid"], out / "page", height=68, width=52, quantize=None)
    assert (out / "page" / "CNAME").read_text() == "cells.example.org"
    assert sorted(path.name for path in out.iterdir()) == ["alone.html", "page"]
    return out


@pytest.fixture(scope="module")
def session(workshop, chromium):
    session = Session(workshop / "test" / "session.mjs", chromium)
    yield session
    session.close()


@pytest.fixture(scope="module")
def address(session, built) -> str:
    return session("serve", str(built / "page"), False)


def _picture(height: int, width: int, channels: int | None = None, seed: int = 0) -> np.ndarray:
    """Blobs, uint8."""
    random = np.random.default_rng(seed)
    shape = (height, width) if channels is None else (height, width, channels)
    coarse = random.uniform(0, 255, (-(-height // 8), -(-width // 8), *shape[2:]))
    return (np.kron(coarse, np.ones((8, 8) + (1,) * len(shape[2:])))[:height, :width]).astype(np.uint8)


def _saved(folder: Path, array: np.ndarray, name: str = "picture.png") -> Path:
    Image.fromarray(array).save(folder / name)
    return folder / name


# -- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(150, 131), (20, 33), (64, 64)])
def test_a_unet_gives_the_numbers_of_python(session, address, networks, tmp_path, size):
    picture = _saved(tmp_path, _picture(*size))
    session("visit", address)
    assert session.segment(picture) == ""
    found = session.probabilities(tmp_path)
    expected = keras_seg.segment(networks["small_same"], picture, rotations=1)
    assert expected[..., 1].std() > 0.05
    np.testing.assert_allclose(found, expected, atol=NUMBERS)
    count = instances(found[..., 1]).max()
    assert session.text("#summary").startswith(f"{count} × cell, ")


def test_the_mean_of_turned_versions_is_that_of_python(session, address, networks, tmp_path):
    picture = _saved(tmp_path, _picture(90, 70))
    session("visit", address)
    session("selectOption", "#versions", "7")
    assert session.segment(picture) == ""
    found = session.probabilities(tmp_path)
    single = keras_seg.segment(networks["small_same"], picture, rotations=1)
    expected = keras_seg.segment(networks["small_same"], picture)
    assert np.abs(single - expected).max() > 100 * NUMBERS
    np.testing.assert_allclose(found, expected, atol=NUMBERS)


def test_valid_padding_colours_and_three_classes(session, address, networks, tmp_path):
    picture = _saved(tmp_path, _picture(90, 70, 3))
    session("visit", address)
    session("selectOption", "#model", "small_valid")
    assert session.segment(picture) == ""
    found = session.probabilities(tmp_path)
    expected = keras_seg.segment(networks["small_valid"], picture)
    np.testing.assert_allclose(found, expected, atol=NUMBERS)
    for k in range(3):
        session("selectOption", "#class", str(k))
        session("until", f"document.querySelector('#summary').textContent.includes('× {k},')")
        assert session.text("#summary").startswith(f"{instances(found[..., k]).max()} × {k}, ")


def test_a_colour_image_is_luma_to_a_grey_network(session, address, networks, tmp_path):
    pixels = _picture(40, 50, 3)
    session("visit", address)
    assert session.segment(_saved(tmp_path, pixels)) == ""
    luma = np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # the input is 8 bits
    expected = keras_seg.segment(networks["small_same"], luma, rotations=1)
    np.testing.assert_allclose(session.probabilities(tmp_path), expected, atol=NUMBERS)


def test_one_file_opens_without_a_server(session, built, networks, tmp_path):
    picture = _saved(tmp_path, _picture(150, 131))
    session("visit", (built / "alone.html").as_uri())
    assert session.segment(picture) == ""
    expected = keras_seg.segment(networks["small_same"], picture, rotations=1)
    np.testing.assert_allclose(session.probabilities(tmp_path), expected, atol=NUMBERS)
    requests = session("noticed")["requests"]
    assert {url.split(":")[0] for url in requests} <= {"file", "blob", "data"}, requests


def test_several_files_opened_without_a_server_say_so(session, built):
    session("visit", (built / "page" / "index.html").as_uri(), {}, "#error:not([hidden])")
    assert session.error() == (
        "This page cannot load its model from a disk. Put it on a web server, or make it as one .html file."
    )


def test_isolated_pages_use_threads(session, built, networks, tmp_path):
    picture = _saved(tmp_path, _picture(150, 131))
    session("visit", session("serve", str(built / "page"), True))
    assert session.segment(picture) == ""
    expected = keras_seg.segment(networks["small_same"], picture, rotations=1)
    np.testing.assert_allclose(session.probabilities(tmp_path), expected, atol=NUMBERS)
    assert any("threaded" in url for url in session("noticed")["requests"])


def test_the_shipped_unet_on_an_unseen_slice(session, workshop, shared, tmp_path):
    model = zoo.load("unet_isbi2012")
    pixels = read_stack(shared / "data" / "isbi2012" / "test-volume.tif")[3]
    page = keras_seg.export.browser(model, tmp_path / "page", example=pixels, credit="ISBI 2012")
    session("visit", session("serve", str(page), False))
    assert "Licence: Apache-2.0" in session.text("#about")
    session("click", "#example")
    session("finished")
    assert session.error() == ""
    found = session.probabilities(tmp_path)
    expected = keras_seg.segment(model, pixels, rotations=1)
    assert np.abs(found - expected).max() < HALF
    assert 40 < instances(found[..., 1]).max() < 300


@pytest.fixture(scope="module")
def nuclei(session, workshop, tmp_path_factory) -> tuple[str, keras.Model]:
    """The address of a page with the nuclei model, and the model."""
    model = zoo.load("maskrcnn_nuclei")
    page = keras_seg.export.browser(model, tmp_path_factory.mktemp("nuclei") / "page")
    return session("serve", str(page), False), model


def _detections(session, path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [N, 4], scores [N] and masks [N, H, W] that the page saves."""
    assert session.segment(path) == ""
    name = session("download", "#save-numbers", str(folder / "found.json"))
    assert name == f"{path.stem}_maskrcnn_nuclei.json"
    found = json.loads((folder / "found.json").read_text())["detections"]
    assert {(one["class"], one["name"]) for one in found} == {(0, "nucleus")}
    assert session.text("#summary") == f"{len(found)} × nucleus"
    masks = []
    for one in found:
        size, counts = one["segmentation"]["size"], one["segmentation"]["counts"]
        masks.append(np.repeat(np.arange(len(counts)) % 2, counts).reshape(size[::-1]).T.astype(bool))
    return np.array([one["box"] for one in found]), np.array([one["score"] for one in found]), np.array(masks)


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of masks [N, H, W] and [M, H, W], the shares of unions, [N, M]."""
    a, b = (m.reshape(len(m), -1).astype(np.float32) for m in (a, b))
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1) - both)


def test_nuclei_are_those_of_python(session, nuclei, shared, tmp_path):
    address, model = nuclei
    small = shared / "data" / "nuclei" / "val" / "2e172afb1f43b359.png"  # 256 x 256: one window
    large = shared / "data" / "nuclei" / "val" / "df53d0b6c2c4e45d.png"  # 260 x 347: four windows
    session("visit", address)
    boxes, scores, masks = _detections(session, small, tmp_path)
    expected = keras_seg.segment(model, small)
    assert len(expected) > 30
    # those at the threshold may be on either side of it
    sure = np.flatnonzero(expected.scores > 0.5 + SCORES)
    overlaps = _overlaps(expected.masks[sure], masks)
    match = overlaps.argmax(1)
    assert len(set(match)) == len(sure)
    assert len(scores) <= np.sum(expected.scores > 0.5 - SCORES)
    np.testing.assert_allclose(boxes[match], expected.boxes[sure], atol=BOXES)
    np.testing.assert_allclose(scores[match], expected.scores[sure], atol=SCORES)
    assert overlaps.max(1).min() > 0.97

    found = _detections(session, large, tmp_path)
    expected = keras_seg.segment(model, large, max_detections=400)
    sure = np.flatnonzero(expected.scores > 0.7)
    assert len(sure) > 40
    # windows have statistics of their own in group normalisation
    assert np.mean(_overlaps(expected.masks[sure], found[2]).max(1) > 0.7) > 0.9
    among = _overlaps(found[2], found[2]) - np.eye(len(found[2]))
    assert among.max() < 0.75  # none twice; in Python, some masks overlap by 0.6
    assert abs(len(found[1]) - len(expected)) < 0.15 * len(expected)

    # LiteRT keeps what it has computed with: a second time, everything is as it was
    for path, before in ((small, (boxes, scores, masks)), (large, found)):
        for again, first in zip(_detections(session, path, tmp_path), before, strict=True):
            np.testing.assert_array_equal(again, first)


# -- the page --------------------------------------------------------------------------------------------------


def test_what_is_no_image_gets_a_message_and_the_next_image_is_segmented(session, address, tmp_path):
    whole = _saved(tmp_path, _picture(40, 40)).read_bytes()
    jpeg = tmp_path / "photo.jpg"
    Image.fromarray(_picture(40, 40)).save(jpeg)
    tiff = tmp_path / "lzw.tif"
    Image.fromarray(_picture(40, 40)).save(tiff, compression="tiff_lzw")
    wrong = {
        "notes.txt": (b"not an image", "notes.txt is not an image that this browser can open"),
        "notes.png": (b"not an image either", "notes.png is not an image that this browser can open"),
        "empty.png": (b"", "empty.png is empty"),
        "cut.png": (whole[:60], "cut.png is not an image that this browser can open"),
        "cut.jpg": (jpeg.read_bytes()[:100], "cut.jpg is not an image that this browser can open"),
        "lzw.tif": (tiff.read_bytes(), "lzw.tif: this page reads no compressed TIFF. Save it as PNG"),
        "cut.tif": (b"II*\0" + bytes(2), "cut.tif: the TIFF file is damaged"),
    }
    session("visit", address)
    for name, (content, message) in wrong.items():
        (tmp_path / name).write_bytes(content)
        assert session.segment(tmp_path / name).startswith(message)
        assert not session("isVisible", "#result")
        assert not session("isVisible", "#progress")
    assert session.segment(_saved(tmp_path, np.full((30, 30), 7, np.uint8), "flat.png")) == (
        "flat.png could not be segmented. Every pixel of this image is alike: there is nothing to see in it."
    )
    assert "this page takes up to 16.8 million" in session.segment(
        _saved(tmp_path, np.zeros((4097, 4096), np.uint8), "large.png")
    )
    assert session.segment(_saved(tmp_path, _picture(40, 40), "good.png")) == ""
    assert session.text("#status").startswith("good.png, 40 × 40 pixels: done in")


def test_images_are_dropped_and_pasted(session, address, tmp_path):
    session("visit", address)
    for event, size in (("drop", 40), ("paste", 50)):
        session("bring", event, str(_saved(tmp_path, _picture(size, size))), f"{event}.png")
        session(
            "until",
            f"document.querySelector('#status').textContent.startsWith('{event}.png, {size} ×')",
        )
        assert session("isVisible", "#result")


def test_everything_is_reached_by_keys(session, address):
    session("visit", address)
    reached = []
    for _ in range(5):
        session("keyboardPress", "Tab")
        reached.append(session("evaluate", "document.activeElement.id"))
    assert reached == ["model", "versions", "file", "example", ""]
    session("focus", "#example")
    session("keyboardPress", "Enter")
    session("finished")
    assert session.error() == ""
    session("focus", "#threshold")
    session("until", "document.querySelector('#threshold-value').textContent !== ''")
    before = session.text("#threshold-value")
    session("keyboardPress", "ArrowRight")
    session("until", f"document.querySelector('#threshold-value').textContent !== '{before}'")
    session("focus", "[name=view][value=objects]")
    session("keyboardPress", "ArrowRight")
    assert session("evaluate", "document.activeElement.value") == "probability"
    focused = "getComputedStyle(document.activeElement).outlineStyle"
    assert session("evaluate", focused) == "solid"  # where one is, is seen


def test_views_thresholds_and_the_saved_picture(session, address, tmp_path):
    pixels = _picture(60, 50)
    picture = _saved(tmp_path, pixels)
    session("visit", address)
    assert session.segment(picture) == ""
    probability = session.probabilities(tmp_path)[..., 1]

    def seen(view):
        session("check", f"[name=view][value={view}]")
        session(
            "evaluate",
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))",
        )
        assert session("download", "#save-picture", str(tmp_path / "saved.png")) == "picture_small_same.png"
        return np.asarray(Image.open(tmp_path / "saved.png").convert("RGB")).astype(int)

    np.testing.assert_array_equal(seen("image"), np.repeat(pixels[..., None], 3, 2))
    assert np.abs(seen("probability")[..., 0] - 255 * probability).max() <= 1
    for threshold in (0.5, 0.3):
        session("fill", "#threshold", str(threshold))
        objects = seen("objects")
        labels = instances(probability, threshold)
        coloured = (objects != pixels[..., None]).any(-1)
        np.testing.assert_array_equal(coloured & (labels == 0), False)
        assert coloured[labels > 0].mean() > 0.95  # a grey may be the mean of itself and a colour
        assert session.text("#summary").startswith(f"{labels.max()} × cell, ")


def test_a_long_run_shows_progress_leaves_the_page_awake_and_is_stopped(session, address, tmp_path):
    large = _saved(tmp_path, _picture(500, 500), "large.png")
    session("visit", address)
    session("selectOption", "#versions", "7")
    session("setInputFiles", "#file", str(large))
    session(
        "until",
        "/Segmenting: [1-9][0-9]* of [0-9]+ passes, about \\d+ s left/.test(document.querySelector('#status').textContent)",
    )
    bar = "(({ value, max }) => [value, max])(document.querySelector('#bar'))"
    value, most = session("evaluate", bar)
    assert 0 < value < most
    assert most % 7 == 0
    session("click", "#stop")
    assert session.text("#status") == "Stopped."
    assert not session("isVisible", "#progress")
    assert session.segment(_saved(tmp_path, _picture(40, 40), "small.png")) == ""
    assert session.text("#status").startswith("small.png")


def test_a_new_image_takes_the_place_of_one_under_way(session, address, tmp_path):
    session("visit", address)
    session("setInputFiles", "#file", str(_saved(tmp_path, _picture(500, 500), "first.png")))
    session("until", "document.querySelector('#status').textContent.startsWith('Segmenting')")
    assert session.segment(_saved(tmp_path, _picture(30, 40), "second.png")) == ""
    assert session.text("#status").startswith("second.png, 40 × 30 pixels")


def test_a_phone(session, address, tmp_path):
    session("visit", address, PHONE)
    session("click", "#example")
    session("finished")
    assert session.error() == ""
    width = "[document.scrollingElement.scrollWidth, document.querySelector('#canvas').getBoundingClientRect().right]"
    assert all(edge <= 360 for edge in session("evaluate", width))
    low = """[...document.querySelectorAll("button, select, input[type=file]")].filter((e) => e.checkVisibility())
        .filter((e) => e.getBoundingClientRect().height < 44).map((e) => e.id)"""
    assert session("evaluate", low) == []
    session("screenshot", {"path": str(tmp_path / "phone.png"), "fullPage": True})


CONTRASTS = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (e) => { const c = rgb(getComputedStyle(e).backgroundColor); return c[3] === 0 ? behind(e.parentElement) : c; };
  return Object.fromEntries([...document.querySelectorAll("h1, p, span, button, select, legend, output, label")]
    .filter((e) => e.checkVisibility() && e.textContent.trim())
    .map((e) => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
      return [e.id || e.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; }));
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(session, address, tmp_path, scheme):
    """Contrasts of at least 4.5: WCAG 2.2, success criterion 1.4.3."""
    session("visit", address, {"colorScheme": scheme})
    assert session.segment(_saved(tmp_path, np.zeros((9, 9), np.uint8), "flat.png")) != ""
    found = session("evaluate", CONTRASTS)
    session("click", "#example")
    session("finished")
    found |= session("evaluate", CONTRASTS)
    assert {"error", "summary", "about", "example"} <= set(found)
    assert min(found.values()) >= 4.5, found


def test_nothing_leaves_the_machine_and_nothing_goes_wrong(session, address):
    session("visit", address)
    session("click", "#example")
    session("finished")
    seen = session("noticed")
    no_gpu = "Failed to create default WebGPU device"  # LiteRT's own, for what is not used
    assert [error for error in seen["errors"] if not error.startswith(no_gpu)] == []
    assert {url for url in seen["requests"] if not url.startswith((address, "blob:", "data:"))} == set()
    blocked = session("evaluate", "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.message)")
    assert blocked.startswith("Failed to fetch")
    assert any("Content Security Policy" in error for error in session("noticed")["errors"])


def test_a_model_that_is_not_there_gets_a_message(session, built, tmp_path):
    page = tmp_path / "page"
    shutil.copytree(built / "page", page)
    (page / "small_same.tflite").unlink()
    session("visit", session("serve", str(page), False))
    error = session.segment(_saved(tmp_path, _picture(40, 40)))
    assert (
        error
        == "picture.png could not be segmented. small_same.tflite could not be loaded: the server says 404."
    )
    (page / "small_same.tflite").write_bytes(b"no model")
    assert session.segment(_saved(tmp_path, _picture(40, 40))).startswith(
        "picture.png could not be segmented. "
    )


def test_a_browser_that_computes_otherwise_is_told_and_shows_nothing(session, built, tmp_path):
    page = tmp_path / "page"
    shutil.copytree(built / "page", page)
    entries = json.loads((page / "models.json").read_text())
    entries[0]["check"]["probabilities"] = entries[0]["check"]["probabilities"][::-1]
    (page / "models.json").write_text(json.dumps(entries))
    session("visit", session("serve", str(page), False))
    error = session.segment(_saved(tmp_path, _picture(40, 40)))
    assert "In this browser the model gives other numbers than in Python" in error
    assert not session("isVisible", "#result")


# -- keras-seg export --------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_and_compares_it(workshop, networks, run, tmp_path):
    block = {
        "builder": "unet", "input_channels": 1, "class_names": ["membrane", "cell"], "depth": 2, "base_channels": 4,
        "padding": "same", "normalization": "batch",
    }  # fmt: skip
    data = {
        "reader": "folder", "classes": {"membrane": 0, "cell": 255}, "validation_images": "v", "validation_masks": "m",
        "tile": 64, "batch_size": 1,
    }  # fmt: skip
    training = {
        "steps": 1, "optimizer": {"name": "adam", "learning_rate": 1e-3}, "select": {"metric": "mean_iou", "mode": "max"},
    }  # fmt: skip
    recipe = {
        "schema": 1,
        "name": "small",
        "summary": "for a test",
        "model": block,
        "data": data,
        "training": training,
    }
    (tmp_path / "small.yaml").write_text(json.dumps(recipe))
    save_weights(networks["small_same"], tmp_path / "small.weights.h5")
    weights = "--weights", tmp_path / "small.weights.h5"
    page = tmp_path / "page"
    command = ("export", tmp_path / "small.yaml", page, *weights, "--format", "browser")
    size = "--height", 64, "--width", 64
    status, out, error = run(*command, *size, "--quantize", "none", "--check")
    assert status == 0, error
    assert f"{page / 'index.html'}: page with small; put the folder on any web server" in out.replace(
        "\n", ""
    )
    assert float(out.split("probabilities")[1]) < NUMBERS
    before = sorted(path.name for path in page.iterdir())
    status, _, error = run(*command)
    assert status == 2 and "offers small already; overwrite=True replaces it" in error
    assert sorted(path.name for path in page.iterdir()) == before
