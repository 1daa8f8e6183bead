"""The arithmetic itself, in C++ under sanitizers: all instruction sets against the bodies of the GPU's threads."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from keras_seg.ops.native import build

SANITIZE = (
    "-fsanitize=address,undefined,float-cast-overflow,float-divide-by-zero", "-fno-sanitize-recover=all",
)  # fmt: skip
CASES = 2000


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    compiler = build.find_compiler()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("with a blank")
    x86 = os.uname().machine == "x86_64"
    flags = [
        *build.KERNEL_FLAGS,
        "-O1",
        "-g",
        f"-I{build.HERE}",
        *SANITIZE,
        *(["-DKERAS_SEG_X86"] if x86 else []),
    ]
    sources = {
        "dispatch": (build.HERE / "roi_align_dispatch.cc", ()),
        "fuzz": (Path(__file__).with_name("fuzz.cc"), ()),
    }
    for name, wide in (build.X86_FLAGS if x86 else {"plain": ()}).items():
        sources[name] = build.HERE / "roi_align_cpu.cc", wide
    objects = {name: str(folder / f"{name}.o") for name in sources}
    build.run_all(
        [
            [*compiler, *flags, *more, "-c", str(file), "-o", objects[name]]
            for name, (file, more) in sources.items()
        ]
    )
    build.run_all([[*compiler, *SANITIZE, *objects.values(), "-o", str(folder / "fuzz")]])
    return folder / "fuzz"


@pytest.mark.parametrize("seed", [1, 2])
def test_random_boxes_of_all_kinds(program, seed):
    # leaks are looked for by tracing the process, which a container may forbid
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [program, str(CASES // 2), str(seed)], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines(), "no instruction set was tried"
