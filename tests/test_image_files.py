"""Which files paths, folders and patterns mean, and names for their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from keras_seg.image_files import distinct_names, find, relative_names


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for file in (
        "a/2.png",
        "a/1.TIF",
        "a/notes.txt",
        "a/.hidden.png",
        "a/deep/3.jpg",
        "b/2.png",
        "odd[1].png",
        "raw.dat",
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "files"),
    [
        ("a", ["a/1.TIF", "a/2.png"]),
        ("a/**", ["a/1.TIF", "a/2.png", "a/deep/3.jpg"]),
        ("*/2.png", ["a/2.png", "b/2.png"]),
        (["b", "a/2.png", "b/2.png"], ["b/2.png", "a/2.png"]),
        ("odd[1].png", ["odd[1].png"]),
        (Path("raw.dat"), ["raw.dat"]),
    ],
)
def test_find(folder, inputs, files):
    assert [file.as_posix() for file in find(inputs)] == files


def test_results_are_no_images(folder):
    assert [str(file) for file in find("**/*.png", outside=[folder / "a"])] == ["b/2.png", "odd[1].png"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("none.png", "none.png: no such file or folder"),
        ("none*.png", r"none\*.png: holds no image \(.png, .jpg"),
        ("empty", "empty: holds no image"),
    ],
)
def test_an_input_that_names_nothing(folder, inputs, message):
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find(["a", inputs])


def test_no_inputs():
    with pytest.raises(ValueError, match="no images are named"):
        find([])


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/1.png", "a/2.png"], ["1", "2"]),
        (["a/1.png", "b/1.png", "b/2.png"], ["a/1", "b/1", "2"]),
        (["x/a/1.png", "y/a/1.png"], ["x/a/1", "y/a/1"]),
        (["a/1.png", "a/1.tif"], ["1.png", "1.tif"]),
        (["a/A.png", "b/a.png"], ["a/A", "b/a"]),
        (["a/A.png", "a/a.png"], ["A", "a~2"]),
    ],
)
def test_distinct_names(files, names):
    assert distinct_names([Path(file) for file in files]) == names


def test_relative_names():
    assert relative_names([Path("x/a/1.png"), Path("x/b/c/2.png")]) == ["a/1.png", "b/c/2.png"]
    assert relative_names([Path("x/a/1.png")]) == ["1.png"] and relative_names([]) == []


def test_names_that_are_taken():
    assert distinct_names([Path("b/1.png")], taken=["1", "other"]) == ["b/1"]
    assert distinct_names([]) == []
