"""Where the compiled operation comes from: cache, lock, damage, read-only folders, no compiler; and the CUDA sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tensorflow as tf

from keras_seg.ops.native import build, library

ALIGN = """
import warnings, sys
warnings.simplefilter("always")
import numpy as np, keras_seg
from keras_seg.ops.native import library
from keras_seg.ops.roi_align import roi_align
for _ in range(2):
    result = roi_align(np.ones((1, 4, 4, 1), np.float32), [[0.0, 0, 4, 4]], [0], 2, 1.0, 2)
assert np.allclose(result, 1)
try:
    print(library.get().path)
except library.Unavailable:
    print("portable")
"""


@pytest.fixture
def built(compiled_folder, tmp_path, monkeypatch) -> Path:
    """The cache folder of a home of this test's own, with the library in it."""
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "a home"))
    folder = library.cache_folder(cuda=False)
    shutil.copytree(compiled_folder, folder)
    return folder


@pytest.fixture(scope="module")
def compiled_folder() -> Path:
    try:
        return library.get().path.parent
    except library.Unavailable as error:
        pytest.skip(f"needs the compiled operation: {error}")


@pytest.fixture
def imitation(monkeypatch):
    """A build that takes no time; the list of the folders it built into."""
    calls = []

    def imitate(folder: Path, nvcc: Path | None = None, architectures=()) -> dict:
        calls.append(folder)
        (folder / build.LIBRARY).write_bytes(b"a library")
        manifest = {
            "sha256": build.file_digest(folder / build.LIBRARY),
            "sources": build.sources_digest(),
            "tensorflow": tf.__version__,
        }
        (folder / build.MANIFEST).write_text(json.dumps(manifest))
        return manifest

    monkeypatch.setattr(library.build, "build", imitate)
    return calls


# --- the cache ---


def test_it_is_built_once_and_found_again(imitation, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "a home"))
    folder = library._cached(None)
    assert folder == library.cache_folder(cuda=False) == library._cached(None)
    assert tf.__version__ in folder.name and folder.is_relative_to(tmp_path / "a home")
    assert len(imitation) == 1 and not imitation[0].exists()  # renamed when complete
    said = capsys.readouterr().err
    assert said.count("building RoIAlign for this machine, once") == 1
    assert sorted(path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock")) == [
        folder.name
    ]


def test_what_is_damaged_foreign_or_unreadable_is_built_anew(imitation, built):
    manifest = json.loads((built / build.MANIFEST).read_text())
    assert library.problem_with(built) is None
    for change, problem in (
        ({"sources": "0"}, "built from other sources"),
        ({"tensorflow": "2.0.1"}, "built for TensorFlow 2.0.1, and this is"),
        ({"sha256": "0"}, "damaged: its sha256 is not that of its manifest"),
        ({"tensorflow": None}, "its manifest cannot be read"),
    ):
        (built / build.MANIFEST).write_text(json.dumps(manifest | change))
        assert problem in library.problem_with(built)
    (built / build.MANIFEST).write_text("{")
    assert "its manifest cannot be read (JSONDecodeError" in library.problem_with(built)
    (built / build.MANIFEST).write_text(json.dumps(manifest))
    (built / build.LIBRARY).write_bytes((built / build.LIBRARY).read_bytes()[:1000])
    assert "damaged" in library.problem_with(built)
    library._cached(None)
    assert len(imitation) == 1 and library.problem_with(built) is None
    shutil.rmtree(built)
    assert library.problem_with(built) == "not there"


def test_a_read_only_home_with_the_library_is_enough(imitation, built):
    built.parent.chmod(0o555)
    try:
        assert library._cached(None) == built
    finally:
        built.parent.chmod(0o755)
    assert not imitation and not list(built.parent.glob("*.lock"))


def test_a_home_that_cannot_be_written(imitation, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERAS_SEG_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildFailed, match="cannot be written .*KERAS_SEG_HOME names another folder"):
        library._cached(None)


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from keras_seg.ops.native import build, library
def imitate(folder, nvcc=None, architectures=()):
    print("built", flush=True)
    time.sleep(1)
    (folder / "roi_align.so").write_bytes(b"a library")
    (folder / "build.json").write_text("{}")
library.build.build = imitate
library.problem_with = lambda folder: None if (folder / "build.json").exists() else "not there"
library._cached(None)
"""


def test_two_processes_at_once_build_once(tmp_path):
    environment = os.environ | {"KERAS_SEG_HOME": str(tmp_path)}
    command = [sys.executable, "-c", TWO_AT_ONCE]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(said) == ["", "built\n"]


# --- none to be had ---


def test_without_a_compiler_there_is_one_warning_that_says_why(python, tmp_path):
    done = python(ALIGN, CXX="/no/such/compiler", KERAS_SEG_HOME=str(tmp_path))
    assert done.stdout == "portable\n"
    assert (
        done.stderr.count("RoIAlign runs on TensorFlow's own operations, which is slower: it could not be")
        == 1
    )
    assert "no C++ compiler was found" in done.stderr and "KERAS_SEG_NATIVE=off hides this" in done.stderr


def test_off_is_silent_and_builds_nothing(python, tmp_path):
    done = python(ALIGN, KERAS_SEG_NATIVE="0", KERAS_SEG_HOME=str(tmp_path))
    assert done.stdout == "portable\n" and "RoIAlign" not in done.stderr
    assert not list(tmp_path.iterdir())


def fresh(monkeypatch, outcome) -> None:
    monkeypatch.setattr(library, "_outcome", outcome)
    monkeypatch.setattr(library, "_warned", False)


def test_require_makes_it_an_error(monkeypatch):
    fresh(monkeypatch, library.Unavailable("there is none"))
    monkeypatch.setenv("KERAS_SEG_NATIVE", "require")
    with pytest.raises(library.Unavailable, match=r"KERAS_SEG_NATIVE=require, but .*: there is none"):
        library.usable()
    monkeypatch.setenv("KERAS_SEG_NATIVE", "sometimes")
    with pytest.raises(
        ValueError, match=r"KERAS_SEG_NATIVE is 'sometimes': must be \"off\", \"require\" or not set"
    ):
        library.usable()


def test_the_warning_comes_once(monkeypatch):
    fresh(monkeypatch, library.Unavailable("there is none"))
    with pytest.warns(RuntimeWarning, match="which is slower: there is none"):
        assert not library.usable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not library.usable()


def test_a_gpu_without_cuda_kernels_leaves_it_to_tensorflow(monkeypatch):
    found = library.Library(
        None, Path("/cache/roi_align.so"), "the cache", "AVX2", False, {}, "no nvcc was found"
    )
    fresh(monkeypatch, found)
    assert library.usable()
    monkeypatch.setattr(library, "_gpus", lambda: True)
    with pytest.warns(RuntimeWarning, match=r"roi_align.so has no CUDA kernels \(no nvcc was found\)"):
        assert not library.usable()


def test_a_library_that_does_not_load_or_is_wrong(built, monkeypatch):
    (built / build.LIBRARY).write_bytes(b"no library")
    with pytest.raises(library.Unavailable, match="roi_align.so does not load"):
        library._loaded(built, "the cache")

    class Wrong:
        def __getattr__(self, name):
            return lambda features, **_: features if name.endswith("grad") else features[0][:, :1, :1]

    with pytest.raises(library.Unavailable, match="roi_align.so gives wrong results on the CPU"):
        library._check(library.Library(Wrong(), built / "roi_align.so", "", "", False, {}), "CPU")


def test_a_compilers_complaint_reaches_the_user(tmp_path):
    compiler = tmp_path / "a compiler"
    compiler.write_text("#!/bin/sh\necho 'op.cc:1: error: something is missing'\nexit 3\n")
    compiler.chmod(0o755)
    with pytest.raises(
        build.BuildFailed, match=r"(?s)ended with status 3:\nop.cc:1: error: something is missing"
    ):
        build.run_all([[str(compiler)], [str(compiler)]])
    with pytest.raises(build.BuildFailed, match="/no/compiler did not start"):
        build.run_all([["/no/compiler"]])


# --- building ---


def test_the_prebuilt_library_goes_first(built, monkeypatch):
    monkeypatch.setattr(library, "prebuilt_folder", lambda: built)
    loaded = []
    monkeypatch.setattr(library, "_loaded", lambda *arguments: loaded.append(arguments))
    library._load()
    assert loaded == [(built, "the package")]


def test_importing_builds_nothing(python, tmp_path):
    python("import keras_seg, keras_seg.ops.roi_align, keras_seg.models", KERAS_SEG_HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_wide_instructions_stay_in_their_own_namespace(tmp_path):
    """The linker may take any copy of an inline function; one with wide instructions would end older machines."""
    compiler, nm = build.find_compiler(), shutil.which("nm")
    if compiler is None or nm is None or os.uname().machine != "x86_64":
        pytest.skip("needs a C++ compiler and nm, on x86-64")
    for name in ("avx2", "avx512"):
        made = tmp_path / f"{name}.o"
        source = build.HERE / "roi_align_cpu.cc"
        flags = [*build.KERNEL_FLAGS, *build.X86_FLAGS[name]]
        build.run_all([[*compiler, *flags, "-c", str(source), "-o", str(made)]])
        lines = subprocess.run(
            [nm, "-C", "--defined-only", "--extern-only", made], capture_output=True, text=True, check=True
        )
        symbols = [line.split(maxsplit=2)[2] for line in lines.stdout.splitlines()]
        assert f"keras_seg_{name}::kKernels" in symbols
        assert all(f"keras_seg_{name}::" in symbol for symbol in symbols), symbols


def test_the_names_of_architectures():
    command = build.cuda_command(Path("nvcc"), ["c++"], ["sm_70", "compute_90"])
    assert "arch=compute_70,code=sm_70" in command and "arch=compute_90,code=compute_90" in command
    assert "-arch=native" in build.cuda_command(Path("nvcc"), ["c++"], ["native"])


WITH_CUDA = """
import sys
from pathlib import Path
from keras_seg.ops.native import build, library
folder = Path({folder!r})
build.build(folder, build.find_nvcc(), ["sm_80"])
found = library._loaded(folder, "a test")
assert found.cuda and "sm_80" in found.manifest["cuda"]
print("loaded")
"""


def test_the_library_with_cuda_kernels_loads_without_a_gpu(python, tmp_path):
    if build.find_nvcc() is None or build.find_compiler() is None:
        pytest.skip("needs nvcc and a C++ compiler")
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("needs a machine without a GPU: elsewhere the CUDA kernels are built for use")
    assert python(WITH_CUDA.format(folder=str(tmp_path))).stdout == "loaded\n"
