"""Batches: equal to `segment` image by image, whole after a kill, and not stopped by a bad image."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import keras_seg

pytest.importorskip("apache_beam", reason="needs Apache Beam: make test-beam")

from keras_seg import batch
from keras_seg.batch import folder as folder_contents
from keras_seg.batch import windows
from keras_seg.batch.folder import Folder
from keras_seg.batch.unet import unet_work

NUCLEI, NEURONS = "maskrcnn_nuclei", "unet_isbi2012"


@pytest.fixture(scope="module")
def nuclei():
    return keras_seg.zoo.load(NUCLEI)


@pytest.fixture(scope="module")
def neurons():
    return keras_seg.zoo.load(NEURONS)


@pytest.fixture(scope="module")
def wells(shared) -> list[Path]:
    """The smallest nuclei images."""
    files = (shared / "data/nuclei/val").glob("*.png")
    return sorted(sorted(files, key=lambda path: Image.open(path).size[::-1] + (path.name,))[:3])


@pytest.fixture(scope="module")
def micrograph(shared) -> np.ndarray:
    return tifffile.imread(shared / "data/isbi2012/test-volume.tif", key=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# -- detectors ---------------------------------------------------------------------------------------------------


def test_a_detector_finds_what_segment_finds(nuclei, wells, tmp_path):
    from pycocotools.coco import COCO

    summary = batch.run(NUCLEI, wells, tmp_path / "out", shard_size=2, max_detections=400, labels=True)
    assert (summary.images, summary.failed) == (3, [])
    found = list(batch.results(tmp_path / "out"))
    singly = [keras_seg.segment(nuclei, path, max_detections=400) for path in wells]
    expected = [one for k, instances in enumerate(singly, start=1) for one in instances.to_coco(k)]
    assert [
        {key: one[key] for key in wanted} for one, wanted in zip(found, expected, strict=True)
    ] == expected
    assert summary.counters | {"images": 3, "objects": len(expected), "failures": 0} == summary.counters
    for path, instances in zip(wells, singly, strict=True):
        labels = tifffile.imread(tmp_path / f"out/labels/{path.stem}.tif")
        np.testing.assert_array_equal(labels, instances.to_labels())
    read = COCO(str(tmp_path / "out/detections/shard-000000.json"))
    assert [read.imgs[k]["file_name"] for k in (1, 2)] == [path.name for path in wells[:2]]
    assert [category["name"] for category in read.cats.values()] == ["nucleus"]
    for annotation in read.anns.values():
        assert read.annToMask(annotation).sum() == annotation["area"]
    # what is done is not done again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    again = batch.run(NUCLEI, wells, tmp_path / "out", shard_size=2, max_detections=400, labels=True)
    assert again.counters == {"units_done_before": 2}
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_images_of_16_bits_are_seen_in_the_recipes_range(run, nuclei, wells, tmp_path):
    pixels = np.asarray(Image.open(wells[0]).convert("RGB"))
    tifffile.imwrite(tmp_path / "deep.tif", pixels.astype(np.uint16) * 16, photometric="rgb")
    recipe = keras_seg.zoo.show(NUCLEI).model_dump(mode="json", exclude_none=True, by_alias=True)
    recipe["data"]["value_range"] = [0, 255 * 16]
    (tmp_path / "deep.yaml").write_text(json.dumps(recipe))
    keras_seg.weights.save_weights(nuclei, tmp_path / "deep.weights.h5")
    expected = keras_seg.segment(nuclei, pixels).to_coco(1)
    command = (
        "batch",
        tmp_path / "deep.yaml",
        tmp_path / "deep.tif",
        "--weights",
        tmp_path / "deep.weights.h5",
    )
    # whole, in tiles, and in another range
    for k, options in enumerate([(), ("--tile-side", 128, "--overlap", 32), ("--value-range", 0, 2**16 - 1)]):
        status, _, errors = run(*command, "-o", tmp_path / f"{k}", *options)
        assert status == 0, errors
    found = [list(batch.results(tmp_path / f"{k}")) for k in range(3)]
    assert [one["bbox"] for one in found[0]] == [one["bbox"] for one in expected] and len(expected) > 3
    assert found[1] and [one["bbox"] for one in found[2]] != [one["bbox"] for one in expected]


def test_a_large_image_in_tiles_has_the_objects_of_the_whole(nuclei, shared, tmp_path):
    """One image, found whole and in overlapping tiles: nine of ten nuclei are the same by half of their area or more.
    The model normalises by groups, over a tile's pixels, so that no two views are quite the same."""
    files = sorted((shared / "data/nuclei/val").glob("*.png"))
    path = next(path for path in files if min(Image.open(path).size) >= 500)
    options = {"max_detections": 400, "tile_side": 320, "overlap": 64}
    summary = batch.run(NUCLEI, path, tmp_path / "out", **options)
    assert not summary.failed
    (shard,) = (tmp_path / "out/detections").iterdir()
    found = json.loads(shard.read_bytes())
    whole = keras_seg.segment(nuclei, path, max_detections=400)
    assert (found["images"][0]["height"], found["images"][0]["width"]) == whole.image_size
    from pycocotools import mask

    ious = mask.iou(
        [one["segmentation"] for one in found["annotations"]],
        [one["segmentation"] for one in whole.to_coco(1)],
        [0] * len(whole),
    )
    assert (ious.max(axis=0) > 0.5).mean() > 0.9
    assert (ious.max(axis=1) > 0.5).mean() > 0.9
    others = mask.iou(*[[one["segmentation"] for one in found["annotations"]]] * 2, [0] * len(ious))
    assert others[~np.eye(len(others), dtype=bool)].max() < 0.5  # none twice
    assert not (tmp_path / "out/tiles").exists()


# -- U-Nets ------------------------------------------------------------------------------------------------------


def test_tiles_are_those_of_segment(neurons, micrograph, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "WHOLE", 100_000)  # the stack is read by window, the crop whole
    stack = np.stack([micrograph[:200, :300], micrograph[200:400, :300]])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "crop.tif", stack[0, :130, :90], photometric="minisblack")
    options = {"tile": 160, "rotations": 1}
    images = [tmp_path / "stack.tif", tmp_path / "crop.tif"]
    summary = batch.run(NEURONS, images, tmp_path / "out", probabilities=True, join=True, **options)
    assert (summary.images, summary.failed, summary.counters["tiles"]) == (2, [], 2 * 4 + 1)
    for name in ("stack", "crop"):
        expected = keras_seg.segment(neurons, tmp_path / f"{name}.tif", **options)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"out/labels/{name}.tif"), expected)
    assert (tmp_path / "out/labels/stack/z0001_y000000_x000160.tif").is_file()


def test_labels_are_the_most_probable_classes(neurons, micrograph, tmp_path):
    Image.fromarray(micrograph[:100, :120]).save(tmp_path / "a.png")
    batch.run(NEURONS, tmp_path / "a.png", tmp_path / "out", rotations=1)
    expected = keras_seg.segment(neurons, tmp_path / "a.png", rotations=1).argmax(axis=-1)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/labels/a.tif"), expected)


def peak() -> int:
    """The most memory that this process had, bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_memory_does_not_grow_with_the_image(tmp_path):
    """A page of 8 GB, nearly all of it a hole in the file."""
    tiny = keras_seg.models.unet(
        input_channels=1, classes=2, base_channels=2, depth=2, padding="same", normalization="batch"
    )
    large = tifffile.memmap(
        tmp_path / "a.tif", shape=(100_000, 80_000), dtype=np.uint8, photometric="minisblack"
    )
    large[:64, :64] = np.arange(64)
    expected = keras_seg.segment(tiny, np.asarray(large[:2100, :2100]), tile=2048, rotations=1).argmax(
        axis=-1
    )
    before = peak()
    work, folder = unet_work(tiny, tile=2048, rotations=1), Folder(str(tmp_path))
    image = folder_contents.Image(1, str(tmp_path / "a.tif"), "a.tif", "a")
    units = list(work.units(folder_contents.Shard(0, (image,)), folder))
    assert len(units) == 49 * 40
    ((_, content),) = work.run(tiny, units[0], folder).files
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(content))[:2000, :2000], expected[:2000, :2000])
    assert peak() - before < 1e9


# -- exported models -----------------------------------------------------------------------------------------------


def test_an_exported_unet(micrograph, tmp_path):
    unet = keras_seg.models.unet(
        input_channels=1, classes=2, class_names=["a", "b"], base_channels=2, depth=1, padding="same",
        normalization="batch",
    )  # fmt: skip
    keras_seg.export.saved_model(unet, tmp_path / "model", winograd=False)
    Image.fromarray(micrograph[:90, :70]).save(tmp_path / "a.png")
    batch.run(tmp_path / "model", tmp_path / "a.png", tmp_path / "out", probabilities=True)
    expected = keras_seg.export.load(tmp_path / "model").segment(tmp_path / "a.png")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out/labels/a.tif"), expected)
    with pytest.raises(ValueError, match="an exported model has its own tile, rotations and precision"):
        batch.run(tmp_path / "model", tmp_path / "a.png", tmp_path / "other", rotations=2)


def test_an_exported_detector(nuclei, wells, tmp_path, monkeypatch):
    class Exported:
        """What `export.load` gives, without the time that an export takes."""

        about = {"masks": "probabilities"}  # noqa: RUF012
        is_detector, class_names, convention = True, nuclei.class_names, nuclei.convention

        def segment(self, image, **options):
            assert set(options) == {"score_threshold", "max_detections", "classes"}
            return keras_seg.segment(nuclei, image, **options)

    (tmp_path / "model").mkdir()
    monkeypatch.setattr(keras_seg.export, "load", lambda path: Exported())
    batch.run(tmp_path / "model", wells[:1], tmp_path / "out", classes=["nucleus"])
    expected = keras_seg.segment(nuclei, wells[0]).to_coco(1)
    found = list(batch.results(tmp_path / "out"))
    assert [
        {key: one[key] for key in wanted} for one, wanted in zip(found, expected, strict=True)
    ] == expected
    with pytest.raises(ValueError, match="an exported model has its own batch_size and precision"):
        batch.run(tmp_path / "model", wells[:1], tmp_path / "other", batch_size=2)


# -- runners -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("DirectRunner", ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]),
        ("PortableRunner", ["--job_endpoint=embed", "--environment_type=LOOPBACK"]),
    ],
)
def test_other_runners_find_the_same(runner, options, micrograph, tmp_path):
    for k in range(2):
        tifffile.imwrite(
            tmp_path / f"{k}.tif", micrograph[:64, 64 * k : 64 * k + 64], photometric="minisblack"
        )
    batch.run(NEURONS, tmp_path, tmp_path / "here", rotations=1)
    summary = batch.run(
        NEURONS,
        tmp_path,
        tmp_path / "there",
        rotations=1,
        shard_size=1,
        runner=runner,
        pipeline_options=options,
    )
    assert not summary.failed
    for k in range(2):
        there, here = (tifffile.imread(tmp_path / f"{where}/labels/{k}.tif") for where in ("there", "here"))
        np.testing.assert_array_equal(there, here)


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_bad_images_are_named_and_the_others_done(wells, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for k, path in enumerate(wells[:3]):
        (images / f"{k}.png").write_bytes(path.read_bytes())
    (images / "1.png").write_bytes(wells[1].read_bytes()[:2000])
    summary = batch.run(NUCLEI, images, tmp_path / "out", shard_size=3)
    assert [failure["file_name"] for failure in summary.failed] == ["1.png"]
    assert "truncated or damaged" in summary.failed[0]["error"]
    assert summary.counters["failures"] == 1
    assert str(summary) == f"{tmp_path / 'out'}: 2 of 3 images; 1 failed, see {tmp_path / 'out/errors'}"
    assert {one["image_id"] for one in batch.results(tmp_path / "out")} == {1, 3}
    # mended and started again: what failed is done
    (images / "1.png").write_bytes(wells[1].read_bytes())
    summary = batch.run(NUCLEI, images, tmp_path / "out", shard_size=3)
    assert summary.failed == []
    assert {one["image_id"] for one in batch.results(tmp_path / "out")} == {1, 2, 3}
    assert not list((tmp_path / "out/errors").iterdir())


def test_bad_micrographs_are_named(micrograph, tmp_path):
    tifffile.imwrite(tmp_path / "constant.tif", np.zeros((64, 64), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "four.tif", np.zeros((64, 64, 2), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "good.tif", micrograph[:64, :64], photometric="minisblack")
    summary = batch.run(NEURONS, tmp_path, tmp_path / "out", rotations=1)
    errors = {failure["file_name"]: failure["error"] for failure in summary.failed}
    assert set(errors) == {"constant.tif", "four.tif"}
    assert "the image is constant, every pixel is 0" in errors["constant.tif"]
    assert (tmp_path / "out/labels/good.tif").is_file()


KILLED = """
import sys
from keras_seg import batch
batch.run(sys.argv[1], sys.argv[3:], sys.argv[2], shard_size=1)
"""


def test_killed_and_started_again_it_ends_the_same(wells, tmp_path):
    batch.run(NUCLEI, wells, tmp_path / "whole", shard_size=1)
    command = [sys.executable, "-c", KILLED, NUCLEI, str(tmp_path / "out"), *map(str, wells)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    detections, random = tmp_path / "out/detections", np.random.default_rng()
    while process.poll() is None and not list(detections.glob("*.json")):
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL or len(list(detections.glob("*.json"))) == len(wells)
    (tmp_path / "out/detections/.left.partial").write_bytes(b"half")  # what a kill may leave
    summary = batch.run(NUCLEI, wells, tmp_path / "out", shard_size=1)
    assert summary.counters["units_done_before"] >= 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_stops_it_and_it_goes_on_later(wells, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, content):
        if self.parent.name == "detections":
            raise OSError(28, os.strerror(28))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OSError, match=r"could not write .*shard-000000\.json \(No space left on device\); start again"
    ):
        batch.run(NUCLEI, wells[:1], tmp_path / "out")
    assert {path for path in contents(tmp_path / "out") if not path.startswith(".")} == {"batch.json"}
    monkeypatch.undo()
    assert not batch.run(NUCLEI, wells[:1], tmp_path / "out").failed
    assert list(batch.results(tmp_path / "out"))


def test_another_batch_in_the_folder(wells, tmp_path):
    batch.run(NUCLEI, wells[:1], tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"max_detections: 100 then, 50 now. Give another folder, or delete it"
    ):
        batch.run(NUCLEI, wells[:1], tmp_path / "out", max_detections=50)
    with pytest.raises(ValueError, match="images: 1 then, 2 now"):
        batch.run(NUCLEI, wells[:2], tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds files but no batch\.json"):
        batch.run(NUCLEI, wells[:1], tmp_path / "other")
    (tmp_path / "out/batch.json").write_text("{")
    with pytest.raises(ValueError, match=r"batch\.json: damaged"):
        batch.run(NUCLEI, wells[:1], tmp_path / "out")


def test_two_at_once(wells, tmp_path):
    from keras_seg.batch.folder import Folder

    with (
        Folder(str(tmp_path / "out")).begun({}),
        pytest.raises(BlockingIOError, match="another batch is writing"),
    ):
        batch.run(NUCLEI, wells[:1], tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (NUCLEI, {"tile": 160}, "tile is no option of a detector, which maskrcnn_nuclei is; these are score_threshold"),
        (NUCLEI, {"shard_size": 0}, "shard_size must be positive, got 0"),
        (NUCLEI, {"batch_size": 0}, "batch_size must be positive, got 0"),
        (NUCLEI, {"classes": ["nuclei"]}, "'nuclei': not one of the class_names; do you mean 'nucleus'?"),
        (NUCLEI, {"tile_side": 64, "overlap": 64}, "overlap must be 0 or more and less than the tile's side 64"),
        (NUCLEI, {"tile_side": 64, "overlap": 8, "labels": True}, "labels are of images that are seen whole"),
        (NUCLEI, {"precision": "float64"}, "float64"),
        (NUCLEI, {"value_range": (9, 3)}, "finite, with low < high"),
        (NEURONS, {"max_detections": 5}, "max_detections is no option of a U-Net"),
        (NEURONS, {"tile": 150}, "tile=150 is no legal side"),
        (NEURONS, {"rotations": 9}, "rotations must be an integer from 1 to 8, got 9"),
    ],
)  # fmt: skip
def test_wrong_options_are_said_before_anything_is_written(model, options, message, wells, tmp_path):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        batch.run(model, wells[:1], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_such_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        batch.run(NUCLEI, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="not the output folder of a batch"):
        next(batch.results(tmp_path))


# -- the command -----------------------------------------------------------------------------------------------


def test_command(run, wells, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    status, printed, _ = run(
        "batch", NUCLEI, *wells[:2], tmp_path / "bad.png", "-o", out, "--score-threshold", 0.7
    )
    assert status == 1
    assert printed.splitlines()[0].startswith(f"{out}: 2 of 3 images; 1 failed")
    assert "bad.png: not an image" in printed
    assert min(one["score"] for one in batch.results(out)) >= 0.7
    status, printed, _ = run(
        "batch", NUCLEI, *wells[:2], tmp_path / "bad.png", "-o", out, "--score-threshold", 0.7, "--json"
    )
    summary = json.loads(printed)
    assert (status, summary["images"], len(summary["failed"])) == (1, 3, 1)
    status, _, errors = run("batch", NUCLEI, *wells[:1], "-o", out, "--workers", 2, "--runner", "FlinkRunner")
    assert status == 2
    assert "--workers is for this machine" in errors
