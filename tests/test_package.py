"""What `import keras_seg` does and does not do. Each case runs in an interpreter of its own."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

CHECKOUT = Path(__file__).resolve().parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("KERAS_", "TF_"))}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=False, env=inherited | environment, cwd=CHECKOUT, capture_output=True, text=True
    )


def test_import_is_quiet_and_brings_in_nothing_heavy():
    heavy = ["tensorflow", "keras", "h5py", "scipy", "pydantic", "yaml", "matplotlib", "typer", "rich"]
    done = python(f"import keras_seg, sys; assert not set({heavy}) & set(sys.modules), sys.modules.keys()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_line_starts_without_what_its_commands_need():
    """Help and completion are at hand at once."""
    heavy = ["tensorflow", "keras", "h5py", "scipy", "matplotlib", "rich", "keras_seg.data"]
    done = python(
        f"import keras_seg.cli, sys; assert not set({heavy}) & set(sys.modules), sys.modules.keys()"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_tensorflow_log_level_is_a_default_only():
    show = "import keras_seg, os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    assert python(show).stdout.strip() == "2"
    assert python(show, TF_CPP_MIN_LOG_LEVEL="0").stdout.strip() == "0"


def test_submodules_come_when_asked_for_and_segment_is_the_function():
    done = python(
        "import keras_seg, keras_seg.segment\n"
        "assert {'zoo', 'recipe', 'segment', 'training'} <= set(dir(keras_seg))\n"
        "assert 'unet_isbi2012' in keras_seg.zoo.list()\n"
        "from keras_seg import zoo\n"
        "assert callable(keras_seg.segment)\n"
        "keras_seg.zooo"
    )
    assert done.stderr.strip().splitlines()[-1] == (
        "AttributeError: module 'keras_seg' has no attribute 'zooo'. Did you mean: 'zoo'?"
    )


def test_every_listed_submodule_exists():
    assert (
        python("import keras_seg\nfor name in keras_seg._SUBMODULES: getattr(keras_seg, name)").returncode
        == 0
    )


def assert_refused(done: subprocess.CompletedProcess, backend: str, chosen_by: str):
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert message.startswith("ImportError: keras_seg runs on Keras's TensorFlow backend only")
    assert repr(backend) in message and chosen_by in message and 'KERAS_BACKEND to "tensorflow"' in message


def test_refuses_a_backend_chosen_by_the_environment():
    assert_refused(
        python("import keras_seg", KERAS_BACKEND="jax"), "jax", "environment variable KERAS_BACKEND"
    )


@pytest.mark.parametrize("variable, folder", [("KERAS_HOME", ""), ("HOME", ".keras")])
def test_refuses_a_backend_chosen_by_the_settings_file(tmp_path, variable, folder):
    settings = tmp_path / folder / "keras.json"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(json.dumps({"backend": "torch"}))
    assert_refused(python("import keras_seg", **{variable: str(tmp_path)}), "torch", str(settings))
    # the environment variable has the last word, as in Keras
    assert python("import keras_seg", **{variable: str(tmp_path)}, KERAS_BACKEND="tensorflow").returncode == 0


@pytest.mark.parametrize("text", ["not JSON", "[]", '{"floatx": "float32"}'])
def test_settings_without_a_backend_mean_tensorflow(tmp_path, text):
    (tmp_path / "keras.json").write_text(text)
    assert python("import keras_seg", KERAS_HOME=str(tmp_path)).returncode == 0


def test_refuses_keras_already_imported_with_another_backend():
    # The other backends' packages are not installed, so Keras itself is stood in for.
    stand_in = "import sys, types\nsys.modules['keras'] = types.SimpleNamespace(config=types.SimpleNamespace("
    done = python(stand_in + "backend=lambda: 'jax'))\nimport keras_seg")
    assert_refused(done, "jax", "keras was imported before keras_seg")
    assert python("import keras, keras_seg").returncode == 0


def test_every_package_is_listed_for_the_wheel():
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    assert listed == {
        *find_packages(CHECKOUT, include=["keras_seg", "keras_seg.*"]),
        "keras_seg._zoo",
        "keras_seg._browser",
    }
