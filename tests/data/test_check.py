"""`keras-seg check-data`: what it tells of a data set."""

from __future__ import annotations

import json

import numpy as np
from coco_files import content, with_keypoints, with_runs, write
from PIL import Image

from keras_seg.data.check import check


def test_a_sound_data_set(tmp_path, run):
    files = write(tmp_path, with_keypoints(content()))
    status, out, error = run("check-data", *files, "--json", "-o", tmp_path / "drawn", "--samples", 2)
    report = json.loads(out)
    assert status == 0 and report["usable"] and not error
    assert report["entries"] == {"images": 3, "annotations": 6, "categories": 2}
    assert report["counts"]["objects"] == 6 and report["counts"]["keypoints"] == 12
    assert report["classes"] == {"three": 3, "seven": 3}
    assert report["sizes"]["image height, pixels"] == {"least": 40, "median": 40, "most": 40}
    assert report["sizes"]["objects an image"]["most"] == 2
    assert report["errors"] == report["dropped"] == report["notes"] == []
    assert len(report["samples"]) == 2
    for path in report["samples"]:
        picture = Image.open(path)
        assert picture.format == "PNG" and max(picture.size) >= 640
        # the objects' colours are there
        image = Image.open(files[1] / f"{int(path.rpartition('/')[2][:-4]) - 10}.png")
        enlarged = image.resize(picture.size, Image.Resampling.BICUBIC)
        assert (np.asarray(picture) != np.asarray(enlarged)).any(axis=-1).mean() > 0.1
    status, out, _ = run("check-data", *files)
    assert status == 0 and "objects of each class" in out and out.endswith("usable\n")


def test_every_problem_is_told_with_its_file_and_id(tmp_path, run):
    data = with_runs(content(images=6))
    data["annotations"][0]["bbox"] = [3, 3, 0, 5]
    data["annotations"][2]["bbox"] = [50, 30, 14, 15]
    data["images"][3]["file_name"] = "2.png"
    del data["annotations"][8]["segmentation"]
    files = write(tmp_path, data)
    (files[1] / "1.png").unlink()
    (files[1] / "4.png").write_bytes(b"no image at all")
    Image.new("L", (60, 41)).save(files[1] / "5.png")
    status, out, _ = run("check-data", *files, "--json")
    report = json.loads(out)
    assert status == 1 and not report["usable"]
    told = "\n".join(report["errors"])
    assert f"image 11: file_name: 1.png is not in {files[1]}" in told
    assert "image 14: file_name: 4.png: " in told
    assert "image 15: height, width: 5.png has 41x60 pixels (height x width, upright), not 40x60" in told
    assert "annotation 108: segmentation: is missing" in told
    assert len(report["errors"]) == 4
    assert report["dropped"] == ["annotation 100: bbox: [3, 3, 0, 5] has no extent"]
    assert report["notes"] == [
        "annotation 102: bbox: [50, 30, 14, 15] leaves the image of 40x60 (height x width): clipped to it",
        "image 13: file_name: 2.png is that of image 12 too",
    ]
    status, out, _ = run("check-data", *files)
    assert status == 1 and "4 errors" in out and "1 dropped" in out and "NOT usable" in out
    status, out, _ = run("check-data", *files, "--quick", "--json")
    assert status == 1 and len(json.loads(out)["errors"]) == 2


def test_all_errors_of_the_annotations_are_listed(tmp_path, run):
    data = content(images=20)
    for annotation in data["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, 4]]
    files = write(tmp_path, data)
    status, out, _ = run("check-data", *files, "--json")
    report = json.loads(out)
    assert status == 1 and len(report["errors"]) == 40 and report["counts"] == {}
    assert report["entries"]["annotations"] == 40
    status, out, _ = run("check-data", *files)
    assert "40 errors" in out and "and 20 more (--json lists all)" in out


def test_what_is_no_data_set(tmp_path, run):
    files = write(tmp_path, content())
    status, _, error = run("check-data", files[0], tmp_path / "nowhere")
    assert status == 2 and "nowhere: no such folder of images" in error
    files[0].write_text("[]")
    status, _, error = run("check-data", *files)
    assert status == 2 and "line 1, column 1: a list, as of results" in error


def test_real_data(shared, tmp_path):
    folder = shared / "data/pennfudan"
    report = check(folder / "instances_val.json", folder / "val", output=tmp_path, samples=1)
    assert report.usable and report.counts["objects"] == 60 and report.entries["images"] == 24
    assert len(list(tmp_path.glob("*.png"))) == 1
