"""Runs the tests in environments of their own: the oldest releases that setup.cfg allows, the newest, other Pythons.

    python scripts/test_versions.py                     the core tests in each environment (make test-versions)
    python scripts/test_versions.py --whole oldest      all tests, with the oldest releases only
    python scripts/test_versions.py --list

Environments are kept in --folder and made anew when setup.cfg has changed; each takes about 2.5 GB.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

CHECKOUT = Path(__file__).resolve().parent.parent
# What touches TensorFlow, Keras, h5py, Pillow, tifffile, SciPy, pydantic, typer and pycocotools, in some minutes.
CORE = (
    "tests/test_package.py",
    "tests/test_recipe.py",
    "tests/test_zoo.py",
    "tests/test_segment.py",
    "tests/test_detect.py",
    "tests/test_inference.py",
    "tests/test_instances.py",
    "tests/test_cli.py",
    "tests/test_draw.py",
    "tests/data/test_images.py",
    "tests/data/test_coco.py",
    "tests/data/test_convert.py",
    "tests/metrics/test_coco.py",
    "tests/models/test_unet.py",
    "tests/ops/test_roi_align.py",
    "tests/ops/test_masks.py",
    "tests/training/test_loop.py",
    "tests/training/test_recipes.py",
    "tests/weights/test_files.py",
    "tests/weights/test_pickles.py",
    "tests/export/test_saved_model.py",
    "tests/export/test_tflite.py",
)


class Environment(NamedTuple):
    """python: "3.11"; versions: what pip is bound to, beside setup.cfg; oldest: bind all else to its lower bound."""

    python: str
    versions: tuple[str, ...]
    oldest: bool = False


ENVIRONMENTS = {
    "oldest": Environment("3.11", ("tensorflow==2.20.*", "keras==3.12.*"), oldest=True),
    "newest": Environment("3.11", ("tensorflow==2.21.*",)),
    "python312": Environment("3.12", ("tensorflow==2.21.*",)),
    "python313": Environment("3.13", ("tensorflow==2.21.*",)),
}


def lowest(requirements: Iterable[str]) -> list[str]:
    """Each requirement bound to the release that its lower bound names, with its last patch: "a>=1,<3" → "a==1.0.*".

    Requirements without a lower bound are left out. A bound of three numbers is that release.
    """
    bound = []
    for requirement in map(Requirement, requirements):
        for specifier in SpecifierSet(str(requirement.specifier)):
            if specifier.operator == ">=":
                numbers = specifier.version.split(".")
                version = ".".join(numbers if len(numbers) > 2 else [*(numbers + ["0"])[:2], "*"])
                bound.append(f"{requirement.name}=={version}")
    return bound


def requirements(extra: str) -> list[str]:
    """What setup.cfg asks for, with one extra."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    texts = (config["options"]["install_requires"], config["options.extras_require"][extra])
    lines = (line.strip() for text in texts for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def constraints(environment: Environment) -> list[str]:
    """What pip is bound to there."""
    chosen = {Requirement(version).name for version in environment.versions}
    others = lowest(requirements("test")) if environment.oldest else []
    return [*environment.versions, *(line for line in others if Requirement(line).name not in chosen)]


def interpreter(version: str) -> str | None:
    """The command of a Python that can make environments, or None: on the PATH, or of pyenv."""
    known = (
        Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser().glob(f"versions/{version}.*/bin/python")
    )
    for candidate in (f"python{version}", *map(str, known)):
        found = shutil.which(candidate)
        say = "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
        if found:
            done = subprocess.run([found, "-c", say], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.strip() == version:
                return found
    return None


def prepared(name: str, environment: Environment, folder: Path) -> Path | None:
    """The environment's Python, made if need be; None where that Python is not installed."""
    place = folder / name
    python, stamp = place / "bin/python", place / "installed"
    bound = "\n".join(constraints(environment)) + "\n"
    wanted = bound + (CHECKOUT / "setup.cfg").read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    base = interpreter(environment.python)
    if base is None:
        return None
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([base, "-m", "venv", place], check=True)
    (place / "constraints.txt").write_text(bound, encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", place / "constraints.txt", "-e", f"{CHECKOUT}[test]"], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def versions(python: Path) -> str:
    """What the figures of an environment are about, in one line."""
    code = (
        "import platform, importlib.metadata as m; print('Python', platform.python_version(), *("
        "f'{n} {m.version(n)}' for n in ('tensorflow', 'keras', 'numpy', 'scipy', 'pillow', 'pydantic', 'typer')))"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all if left out"
    )
    parser.add_argument("--whole", action="store_true", help="all tests instead of the core")
    parser.add_argument(
        "--list", action="store_true", help="print what each environment is bound to, and stop"
    )
    parser.add_argument(
        "--folder", type=Path, default=CHECKOUT / ".venv-versions", help="where environments are kept"
    )
    parser.add_argument("--workers", default="0", help="processes that the tests are spread over")
    parser.add_argument("--tests", nargs="+", help="these test files instead of the core")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in ENVIRONMENTS]:
        parser.error(f"no environment {unknown[0]!r}; there are {', '.join(ENVIRONMENTS)}")
    chosen = {name: ENVIRONMENTS[name] for name in args.names or ENVIRONMENTS}
    if args.list:
        for name, environment in chosen.items():
            print(f"{name}: Python {environment.python}, {', '.join(constraints(environment))}")
        return 0
    tests = [] if args.whole else args.tests or list(CORE)
    outcome = {}
    for name, environment in chosen.items():
        print(f"{name}: preparing", flush=True)
        try:
            python = prepared(name, environment, args.folder)
        except subprocess.CalledProcessError as error:
            outcome[name] = f"could not be installed (status {error.returncode})"
            continue
        if python is None:
            outcome[name] = f"left out: Python {environment.python} is not installed here"
            continue
        line = versions(python)
        print(f"{name}: {line}", flush=True)
        began = time.monotonic()
        command = [python, "-m", "pytest", "-q", "--numprocesses", args.workers, "--dist", "loadfile", *tests]
        status = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
        minutes = (time.monotonic() - began) / 60
        verdict = "passed" if status == 0 else f"FAILED (status {status})"
        outcome[name] = f"{verdict} in {minutes:.0f} min: {line}"
    print("\n".join(f"{name}: {text}" for name, text in outcome.items()))
    return int(any("FAILED" in text or "could not" in text for text in outcome.values()))


if __name__ == "__main__":
    sys.exit(main())
