"""Compiles the sources of RoIAlign and of resizing into a library that TensorFlow loads: for this machine, or for a wheel.

python -m keras_seg.ops.native.build --output FOLDER --cuda --architectures sm_70 sm_80 sm_90 compute_90
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIBRARY, MANIFEST = "roi_align.so", "build.json"
SOURCES = (
    "numbers.h", "roi_align.h", "roi_align_elements.h", "roi_align_cpu.h", "roi_align_gpu.h", "roi_align_cpu.cc",
    "roi_align_dispatch.cc", "roi_align_op.cc", "roi_align_gpu.cu", "resize.cc",
)  # fmt: skip
# Positions of samples must be rounded as TensorFlow's operations round them, hence no contraction of a * b + c.
KERNEL_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-Wno-psabi", "-Wno-ignored-attributes")
X86_FLAGS = {
    "plain": (),
    "avx2": ("-DKERAS_SEG_AVX2", "-mavx2", "-mfma", "-mf16c"),
    "avx512": (
        "-DKERAS_SEG_AVX512", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c",
    ),
}  # fmt: skip
CUDA_FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-Xcompiler", "-fPIC")
TIMEOUT = 1200  # seconds a compiler may take on a machine that is busy
TAIL = 12  # lines of a compiler's complaint that are shown


class BuildFailed(RuntimeError):
    """No compiler, or one that failed."""


def sources_digest() -> str:
    """Of all sources and the flags that they are compiled with."""
    digest = hashlib.sha256(repr((KERNEL_FLAGS, X86_FLAGS, CUDA_FLAGS)).encode())
    for name in SOURCES:
        digest.update(name.encode() + (HERE / name).read_bytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_compiler() -> list[str] | None:
    """The C++ compiler's command: $CXX, else c++, g++ or clang++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen if shutil.which(chosen[0]) else None
    return next(([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def find_nvcc() -> Path | None:
    """$KERAS_SEG_NVCC, else nvcc on the PATH, in /usr/local/cuda or from a package (nvidia-cuda-nvcc)."""
    if chosen := os.environ.get("KERAS_SEG_NVCC"):
        return Path(chosen) if shutil.which(chosen) else None
    packages = Path(sysconfig.get_path("purelib"), "nvidia")
    places = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", *sorted(packages.glob("*/bin/nvcc"))]
    return next((Path(place) for place in places if place and os.access(place, os.X_OK)), None)


def build(folder: Path, nvcc: Path | None = None, architectures: Sequence[str] = ("native",)) -> dict:
    """Writes the library and its manifest into `folder`; returns the manifest.

    Args:
        nvcc: compile the CUDA kernels too, with this compiler.
        architectures: what for: "native", the GPUs of this machine, or names like "sm_80" and "compute_90".

    Raises BuildFailed with the compiler's own words.
    """
    import tensorflow as tf

    compiler = find_compiler()
    if compiler is None:
        raise BuildFailed(
            "no C++ compiler was found (c++, g++ or clang++ on the PATH, or the environment variable CXX)"
        )
    includes = tf.sysconfig.get_compile_flags()
    define = [f'-DKERAS_SEG_SOURCES="{sources_digest()}"']
    cuda = ["-DGOOGLE_CUDA=1", *_cuda_includes(nvcc)] if nvcc else []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory(prefix="keras_seg_build_") as work:
        commands = {
            "op.o": [
                *compiler, *includes, "-O2", "-fPIC", "-w", *define, *cuda, "-c", str(HERE / "roi_align_op.cc"),
            ],
            "dispatch.o": [
                *compiler, *KERNEL_FLAGS, *(["-DKERAS_SEG_X86"] if x86 else []), "-c",
                str(HERE / "roi_align_dispatch.cc"),
            ],
            "resize.o": [*compiler, *KERNEL_FLAGS, "-c", str(HERE / "resize.cc")],
        }  # fmt: skip
        for name, flags in (X86_FLAGS if x86 else {"plain": ()}).items():
            commands[f"{name}.o"] = [*compiler, *KERNEL_FLAGS, *flags, "-c", str(HERE / "roi_align_cpu.cc")]
        if nvcc:
            commands["gpu.o"] = cuda_command(nvcc, compiler, architectures)
        run_all([[*command, "-o", str(Path(work, name))] for name, command in commands.items()])
        objects = [str(Path(work, name)) for name in commands]
        link = [*tf.sysconfig.get_link_flags(), *(_cuda_link(nvcc) if nvcc else [])]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        run_all([[*compiler, "-shared", *objects, "-o", str(folder / LIBRARY), *link]])
    manifest = {
        "sha256": file_digest(folder / LIBRARY),
        "sources": sources_digest(),
        "tensorflow": tf.__version__,
        "machine": platform.machine(),
        "built": time.strftime("%Y-%m-%d %H:%M:%S"),
        "compiler": _version(compiler),
        "cuda": f"{_version([str(nvcc)])}, {' '.join(architectures)}" if nvcc else None,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def cuda_command(nvcc: Path, compiler: Sequence[str], architectures: Sequence[str]) -> list[str]:
    """nvcc's command for the `.cu`, without the output."""
    targets = []
    for name in architectures:
        if name == "native":
            targets.append("-arch=native")
        else:
            number = name.split("_")[-1]
            targets += ["-gencode", f"arch=compute_{number},code={name}"]
    return [
        str(nvcc), *CUDA_FLAGS, "-ccbin", compiler[0], *targets, "-c", str(HERE / "roi_align_gpu.cu"),
    ]  # fmt: skip


def _cuda_includes(nvcc: Path) -> list[str]:
    """TensorFlow's headers include CUDA's, which its wheel has, of its own version; else nvcc's."""
    import tensorflow as tf

    own = Path(tf.sysconfig.get_include(), "third_party/gpus/cuda/include")
    return [f"-I{own}"] if (own / "cuda_runtime.h").is_file() else _nvcc_options(nvcc, "INCLUDES")


def _cuda_link(nvcc: Path) -> list[str]:
    runtime = nvcc.resolve().parents[2] / "cuda_runtime/lib"  # where a package has it
    beside = [f"-L{runtime}"] if runtime.is_dir() else []
    return [*_nvcc_options(nvcc, "LIBRARIES"), *beside, "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def _nvcc_options(nvcc: Path, kind: str) -> list[str]:
    """What nvcc itself passes on: on the PATH there may be a script that calls one elsewhere."""
    command = [str(nvcc), "--dryrun", "-c", str(HERE / "roi_align_gpu.cu")]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    lines = [line.partition("=")[2] for line in said.splitlines() if line.startswith(f"#$ {kind}=")]
    return shlex.split(lines[0]) if lines else []


def _version(command: Sequence[str]) -> str:
    lines = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    named = [line for line in lines if "release" in line] or lines or ["unknown"]
    return named[0].strip()


def run_all(commands: list[list[str]]) -> None:
    """Runs commands, as many at once as there are processors. Raises BuildFailed with what the first to fail said."""
    waiting = list(commands)
    running: list[tuple[list[str], subprocess.Popen, Any]] = []
    limit = max(1, os.cpu_count() or 1)
    deadline = time.monotonic() + TIMEOUT
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                command = waiting.pop(0)
                try:
                    # to a file: a full pipe would stop the compiler
                    complaint = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
                    process = subprocess.Popen(command, stdout=complaint, stderr=subprocess.STDOUT)
                except OSError as error:
                    raise BuildFailed(f"{command[0]} did not start: {error}") from error
                running.append((command, process, complaint))
            for entry in list(running):
                command, process, complaint = entry
                if process.poll() is None:
                    continue
                running.remove(entry)
                if process.returncode:
                    complaint.seek(0)
                    raise BuildFailed(_explain(command, process.returncode, complaint.read()))
                complaint.close()
            if time.monotonic() > deadline:
                raise BuildFailed(f"{commands[0][0]} took more than {TIMEOUT} seconds")
            time.sleep(0.05)
    finally:
        for _, process, complaint in running:
            process.kill()
            process.wait()
            complaint.close()


def _explain(command: Sequence[str], status: int, said: str) -> str:
    lines = said.splitlines()
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "\n".join([f"{shlex.join(command)} ended with status {status}:", *errors[:TAIL]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder; if left out, where a wheel takes it from")
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels too")
    parser.add_argument("--architectures", nargs="+", default=["native"])
    args = parser.parse_args()
    nvcc = find_nvcc()
    if args.cuda and nvcc is None:
        parser.error("nvcc was not found: put it on the PATH or name it in KERAS_SEG_NVCC")
    from keras_seg.ops.native.library import prebuilt_folder

    output = args.output or prebuilt_folder()
    output.mkdir(parents=True, exist_ok=True)
    manifest = build(output, nvcc if args.cuda else None, args.architectures)
    print(f"{output / LIBRARY}: {json.dumps(manifest)}")


if __name__ == "__main__":
    main()
