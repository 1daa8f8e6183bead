"""The wheel and the source distribution carry all that they need: built, installed outside the checkout, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
USE_IT = """
import importlib.metadata, numpy, sys
import keras_seg
print(keras_seg.__file__)
assert importlib.metadata.version("keras_seg") == keras_seg.__version__
model = keras_seg.zoo.load("unet_isbi2012")
assert model.loaded.fresh == ()
image = numpy.arange(64 * 64, dtype=numpy.uint8).reshape(64, 64)
assert keras_seg.segment(model, image, rotations=1).shape == (64, 64, 2)
assert "ablations/maskrcnn_r50_fpn_mlp2" in keras_seg.zoo.list()
"""

# what `make native` or scripts/build_wheel.sh would have made, for another TensorFlow
PREBUILT = {
    f"keras_seg/ops/native/prebuilt/tf0.1-linux-none/{name}" for name in ("roi_align.so", "build.json")
}


def run(*command, **options) -> str:
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without a network from a copy of the checkout, so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "prebuilt")
    shutil.copytree(CHECKOUT, folder / "source", ignore=unwanted)
    for name in PREBUILT:
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / name).write_text("stands for a library")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def from_sdist(wheel, tmp_path_factory) -> Path:
    """The wheel of an unpacked source distribution, built where nothing else lies."""
    folder = tmp_path_factory.mktemp("sdist")
    source = wheel.parent / "source"
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, cwd=source)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=unpacked)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_code_the_zoo_and_the_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = ("*.py", "py.typed", "native/*.h", "native/*.cc", "native/*.cu")
    code = {
        str(path.relative_to(CHECKOUT)) for kind in kinds for path in (CHECKOUT / "keras_seg").rglob(kind)
    }
    recipes = CHECKOUT / "zoo"
    zoo = {f"keras_seg/_zoo/{path.relative_to(recipes)}" for path in recipes.rglob("*") if path.is_file()}
    page = CHECKOUT / "export/browser"
    kinds = ("*.html", "*.css", "*.mjs", "*.json", "src/*.js")
    browser = {f"keras_seg/_browser/{path.relative_to(page)}" for kind in kinds for path in page.glob(kind)}
    metadata = {name for name in names if ".dist-info/" in name}
    assert any(name.endswith("LICENSE") for name in metadata)
    assert names - metadata == code | zoo | browser | PREBUILT


def test_the_source_distribution_gives_the_same_wheel(wheel, from_sdist):
    one, other = (zipfile.ZipFile(path) for path in (wheel, from_sdist))
    record = {name for name in one.namelist() if name.endswith(".dist-info/RECORD")}
    assert set(one.namelist()) == set(other.namelist())
    for name in set(one.namelist()) - record:
        assert one.read(name) == other.read(name), name


def test_a_model_loads_where_only_the_wheel_is_installed(from_sdist, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", from_sdist)
    # The dependencies are borrowed from the present environment, which takes no time. A path in a .pth file
    # is only appended to sys.path: .pth files in that folder, an editable install's too, are not read.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = run(python, "-c", USE_IT, cwd=tmp_path, env=variables)
    assert Path(printed.strip()).is_relative_to(environment)
    assert "unet_isbi2012" in run(environment / "bin" / "keras-seg", "list", cwd=tmp_path, env=variables)
