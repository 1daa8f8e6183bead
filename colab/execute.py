"""Runs a tutorial from top to bottom and, on request, keeps what it printed and drew in the notebook.

    python colab/execute.py colab/1_segment_neurons.ipynb             # the committed outputs anew
    python colab/execute.py colab/6_*.ipynb --set STEPS=5 --no-write   # does it run?

The notebook runs in a new empty folder, with `data` beside it as in colab/, so a run leaves nothing behind and sees
nothing of an earlier one. Settings replace those of the cell that is tagged `parameters`.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.util import run_sync
from PIL import Image

COLAB = Path(__file__).resolve().parent
LARGEST_PICTURE = 100_000  # bytes; what a picture in a committed notebook should not exceed
# Makes a kernel that has run another notebook as good as new, but for TensorFlow, which stays imported. Compiled operations
# too: TensorFlow lets nobody register them twice.
RENEW = """\
import os, sys
os.chdir({folder!r})
for name in [*sys.modules]:
    if name.split(".")[0] == "keras_seg" and not name.startswith("keras_seg.ops.native"):
        del sys.modules[name]
get_ipython().run_line_magic("reset", "-f")
"""


@contextmanager
def new_kernel() -> Iterator[AsyncKernelManager]:
    """A kernel for several notebooks, one after the other."""
    kernel = AsyncKernelManager(kernel_name="python3")
    run_sync(kernel.start_kernel)()
    try:
        yield kernel
    finally:
        run_sync(kernel.shutdown_kernel)(now=True)


def execute(
    path: Path,
    settings: Mapping[str, object] | None = None,
    results: Sequence[str] = (),
    timeout: int = 1800,
    *,
    changes: Mapping[str, str] | None = None,
    kernel: AsyncKernelManager | None = None,
    data: Path = COLAB / "data",
) -> tuple[nbformat.NotebookNode, dict]:
    """The notebook with its new outputs, and the values of the variables `results` when all cells had run.

    Args:
        settings: values (anything that `repr` writes as Python) for names that the cell tagged `parameters` sets.
        results: names of variables that JSON can express: numbers, strings, lists of them.
        timeout: seconds for one cell.
        changes: text of its code -> what stands there instead, wherever it stands, for what is no setting. What cells print
            that were changed is not kept.
        kernel: to run it in; None: one of its own. A kernel that has TensorFlow imported already saves some seconds.
        data: the folder that it sees as `data`.

    Raises:
        ValueError: a setting that the notebook does not have, or a text to be changed.
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = list(notebook.cells)
    running = [_changed(cell, changes or {}) for cell in cells]
    for text in changes or {}:
        if not any(text in cell.source for cell in cells if cell.cell_type == "code"):
            raise ValueError(f"{path.name} has no {text!r} to change")
    if settings:
        at = _settings_cell(path, cells)
        unknown = sorted(set(settings) - _assigned(cells[at].source))
        if unknown:
            raise ValueError(f"{path.name} has no setting {', '.join(unknown)} in its cell of settings")
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        running.insert(at + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    values = ", ".join(f"{name!r}: {name}" for name in results)
    # numbers may be NumPy's
    asking = f"import json\nprint(json.dumps({{{values}}}, default=lambda value: value.tolist()))"
    running.append(nbformat.v4.new_code_cell(asking))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data").symlink_to(data, target_is_directory=True)
        if kernel:
            running.insert(0, nbformat.v4.new_code_cell(RENEW.format(folder=folder)))
        notebook.cells = running
        client = NotebookClient(
            notebook,
            timeout=timeout,
            km=kernel,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    found = json.loads("".join(output.text for output in running[-1].outputs if output.name == "stdout"))
    notebook.cells = cells
    return notebook, found


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes the notebook with pictures of modest size and without what differs from machine to machine."""
    number = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        # progress bars and warnings of the machine
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                kind, picture = smaller(base64.b64decode(output.data.pop("image/png")))
                output.data[kind] = base64.b64encode(picture).decode()
                output.metadata = {}
    notebook.metadata = nbformat.from_dict(
        {
            "accelerator": "GPU",  # what Colab should offer
            "colab": {"gpuType": "T4", "provenance": []},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


def smaller(png: bytes) -> tuple[str, bytes]:
    """The picture with at most 256 colours, or as JPEG where that is still too large: (MIME type, file)."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    if file.tell() <= LARGEST_PICTURE:
        return "image/png", file.getvalue()
    for quality in (88, 80, 70, 60, 50, 40):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_PICTURE:
            break
    return "image/jpeg", file.getvalue()


def _changed(cell: nbformat.NotebookNode, changes: Mapping[str, str]) -> nbformat.NotebookNode:
    """The cell itself, or another one with other code."""
    source = cell.source
    if cell.cell_type != "code":
        return cell
    for text, other in changes.items():
        source = source.replace(text, other)
    return cell if source == cell.source else nbformat.v4.new_code_cell(source)


def _settings_cell(path: Path, cells: Sequence[nbformat.NotebookNode]) -> int:
    for index, cell in enumerate(cells):
        if "parameters" in cell.metadata.get("tags", ()):
            return index
    raise ValueError(f"{path.name} has no cell tagged `parameters`")


def _assigned(source: str) -> set[str]:
    targets = (
        target for node in ast.parse(source).body if isinstance(node, ast.Assign) for target in node.targets
    )
    return {target.id for target in targets if isinstance(target, ast.Name)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, as Python"
    )
    parser.add_argument("--no-write", action="store_true", help="leave the notebook as it is")
    arguments = parser.parse_args()
    settings = {}
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parser.error(f"--set {setting}: expects NAME=VALUE with a number, a 'string' or a list")
    for path in arguments.notebooks:
        print(f"{path} ...", flush=True)
        notebook, _ = execute(path, settings)
        if not arguments.no_write:
            write(notebook, path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
