"""The tutorials, executed whole on small settings; and what makes each of them open, install and read well."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

nbformat = pytest.importorskip(
    "nbformat", reason='the tutorials run with the "test" extra: pip install -e ".[test]"'
)
pytest.importorskip("nbclient", reason='the tutorials run with the "test" extra: pip install -e ".[test]"')

COLAB = Path(__file__).resolve().parent.parent / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))

# Images of the tutorials' data that are enough for the tests.
TRAIN, VALIDATION = {2, 3, 6, 9, 11, 22}, {5, 10, 20}
NAMED = "9ebcfaf2322932d4.tif"

# What makes the networks that are trained smaller, and what they see; and an export whose graph is optimised sooner.
CHANGES = {
    "2_train_unet_on_your_images": {"base_channels: 16": "base_channels: 8", "batch_size: 8 ": "batch_size: 4 "},
    "4_train_mask_rcnn": {
        "width: 32": "width: 8", "fpn_channels: 64": "fpn_channels: 16", "box_head_channels: 128": "box_head_channels: 32",
        "mask_channels: 64": "mask_channels: 16",
    },
    "5_keypoints": {
        "width: 32": "width: 16", "fpn_channels: 64": "fpn_channels: 32", "box_head_channels: 256": "box_head_channels: 64",
        "keypoint_channels: 64": "keypoint_channels: 32", "side: 320": "side: 160", "side: 560": "side: 280",
        "anchor_sizes: [16, 32, 64, 128, 256]": "anchor_sizes: [8, 16, 32, 64, 128]",
    },
    "7_export_and_serve": {
        'export.saved_model(model, "served/maskrcnn_nuclei/1")':
        'export.saved_model(model, "served/maskrcnn_nuclei/1", winograd=False, warmup_sizes=())',
    },
}  # fmt: skip

# Of each tutorial the settings of a small run, and what its variables must then hold.
TUTORIALS: dict[str, tuple[dict[str, object], dict[str, Callable[[object], bool]]]] = {
    "1_segment_neurons": (
        {"SIDE": 256, "ROTATIONS": 1},
        {
            "scores": lambda scores: scores["v_rand"] > 0.95 and scores["rand_error"] < 0.1,
            "tile_error": lambda error: error < 1e-4,
            "naive_error": lambda error: error > 0.3,
            # a hole of a few pixels costs more than membranes that are thicker everywhere
            "spoiled_scores": lambda scores: scores["gap"]["v_rand"] + 0.02 < scores["thick"]["v_rand"],
        },
    ),
    "2_train_unet_on_your_images": (
        {"STEPS": 30},
        {
            "share_found": lambda share: share > 0.5,
            "score": lambda score: (
                score["SEG"] > 0.2
            ),  # one blob of all would find all, and score next to nothing
            "same": lambda difference: difference == 0,
            "count": lambda count: count["separated"] > count["merged"] + 10,
        },
    ),
    "3_detect_with_mask_rcnn": (
        {},
        {
            "counted": lambda counted: 43 <= counted[0] <= 53 and 60 <= counted[1] <= 80,
            # the steps by hand are the model's own
            "difference": lambda difference: difference < 1e-3,
        },
    ),
    "4_train_mask_rcnn": (
        {"STEPS": 8, "BATCH": 2, "EVALUATE_EVERY": 8},
        {
            "losses": lambda losses: losses[-1] < 2.6,
            "shipped_ap": lambda ap: ap > 0.5,
        },
    ),
    "5_keypoints": (
        {"STEPS": 20, "FETCH": False},
        {
            "measured": lambda ap: abs(ap - 0.6) < 1e-6,
            "expected": lambda ap: abs(ap - 0.6) < 1e-6,
            "keypoint_losses": lambda losses: losses[-1] < 7.5,  # ln(56 * 56) = 8.05 before the first step
        },
    ),
    "6_roi_align_and_roi_pool": (
        {"IMAGES": 2},
        {
            "hand_difference": lambda difference: difference < 1e-4,
            "jumps": lambda jumps: jumps["RoIPool"] > 3 * jumps["RoIAlign"],
            "align_error": lambda error: error < 1e-3,
            "pool_error": lambda error: error > 0.5,
            "mask_overlap": lambda overlap: (
                overlap["align"] > 0.7 and overlap["align"] > overlap["pool"] + 0.02
            ),
            "cells_reached": lambda cells: cells["RoIAlign"] > cells["RoIPool"],
        },
    ),
    "7_export_and_serve": (
        {"PRECISIONS": ["dynamic"], "IMAGES": [20]},
        {
            "served_apart": lambda apart: apart["without counterpart"] == 0 and apart["boxes"] < 0.01,
            "refused": bool,
            "sizes": lambda sizes: sizes["TFLite dynamic"] < 0.3 * sizes["Keras"],
            "aps": lambda aps: (
                min(aps.values()) > 40
                and abs(aps["SavedModel"] - aps["Keras"]) < 0.5
                and abs(aps["TFLite dynamic"] - aps["Keras"]) < 5
            ),
        },
    ),
}

SETUP = """\
# On Colab this installs keras_seg and fetches the example images (about a minute); elsewhere both are expected.
import sys
from pathlib import Path

DATA = Path("data")
if "google.colab" in sys.modules:
    if not Path("tutorials").exists():
        !git clone -q --depth 1 https://github.com/OWNER/keras_seg tutorials
    %pip install -q ./tutorials
    DATA = Path("tutorials/colab/data")"""


def load_execute():
    spec = importlib.util.spec_from_file_location("colab_execute", COLAB / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


colab = load_execute()


@pytest.fixture(scope="module")
def kernel():
    with colab.new_kernel() as kernel:
        yield kernel


@pytest.fixture(scope="module")
def few_images(tmp_path_factory) -> Path:
    """The tutorials' data with fewer images of nuclei: those that a tutorial names, and some more."""
    checkout = tmp_path_factory.mktemp("checkout")
    folder = checkout / "colab/data"
    shutil.copytree(COLAB / "data", folder)
    (checkout / "export").symlink_to(COLAB.parent / "export")  # what a tutorial takes from beside them
    for part, ids in (("train", TRAIN), ("val", VALIDATION)):
        file = folder / f"nuclei_coco/instances_{part}.json"
        content = json.loads(file.read_text())
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
        file.write_text(json.dumps(content))
        assert len(content["images"]) == len(ids)
    for part, named in (("train", NAMED), ("validation", "")):
        for image in sorted((folder / "nuclei_tiff" / part / "images").iterdir())[3:]:
            if image.name != named:
                image.unlink()
                (folder / "nuclei_tiff" / part / "labels" / image.name).unlink()
    return folder


@pytest.mark.parametrize("name", TUTORIALS)
def test_runs_whole_and_computes_what_it_says(name, kernel, few_images):
    settings, checks = TUTORIALS[name]
    notebook = COLAB / f"{name}.ipynb"
    _, results = colab.execute(
        notebook, settings, [*checks], 300, changes=CHANGES.get(name), kernel=kernel, data=few_images
    )
    wrong = {result: results[result] for result, check in checks.items() if not check(results[result])}
    assert not wrong


def test_every_tutorial_is_tested_and_listed():
    names = [path.stem for path in NOTEBOOKS]
    assert sorted(TUTORIALS) == names
    listed = re.findall(r"\]\((\d_\w+)\.ipynb\)", (COLAB / "README.md").read_text())
    assert listed == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestForm:
    def test_opens_from_its_badge(self, path):
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown" and first.source.startswith("# ")
        badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        address = f"(https://colab.research.google.com/github/{repository()}/blob/main/colab/{path.name})"
        assert badge + address in first.source
        assert badge + address in (COLAB / "README.md").read_text()

    def test_installs_itself_on_colab(self, path):
        setup = nbformat.read(path, as_version=4).cells[1].source
        assert setup == SETUP.replace("OWNER/keras_seg", repository())

    def test_has_outputs_of_a_whole_run_with_small_pictures(self, path):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        pictures = [
            data
            for output in outputs
            for kind, data in output.get("data", {}).items()
            if kind in ("image/png", "image/jpeg")
        ]
        assert len(pictures) >= 2
        assert max(len(base64.b64decode(picture)) for picture in pictures) <= 120_000
        assert path.stat().st_size <= 1_500_000

    def test_names_no_place_of_the_machine_that_ran_it(self, path):
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        texts = [cell.source for cell in cells] + [output.get("text", "") for output in outputs]
        texts += [output.data.get("text/plain", "") for output in outputs if "data" in output]
        assert not re.search(r"(/tmp/|/home/|/root/|/work/|/usr/)", "\n".join(texts))


def repository() -> str:
    """Where the tutorials are cloned from: one address in all of them."""
    text = "".join(path.read_text() for path in [COLAB / "README.md", *NOTEBOOKS])
    addresses = set(re.findall(r"github\.com/([\w.-]+/keras_seg)\b", text))
    addresses |= set(re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob", text))
    assert len(addresses) == 1, addresses
    return addresses.pop()


class TestExecute:
    def notebook(self, tmp_path, *cells, tags=("parameters",)):
        made = [nbformat.v4.new_code_cell(source) for source in cells]
        if made and tags:
            made[0].metadata["tags"] = list(tags)
        path = tmp_path / "small.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=made), path)
        return path

    def test_a_setting_replaces_the_notebooks(self, tmp_path):
        path = self.notebook(tmp_path, "STEPS = 100", "twice = 2 * STEPS", "more = 'width: 8'")
        notebook, results = colab.execute(
            path, {"STEPS": 3}, ["twice", "more"], changes={"width: 8": "width: 4"}
        )
        assert results == {"twice": 6, "more": "width: 4"}
        assert [cell.source for cell in notebook.cells][1:] == ["twice = 2 * STEPS", "more = 'width: 8'"]

    def test_an_unknown_setting_is_named(self, tmp_path):
        path = self.notebook(tmp_path, "STEPS = 100")
        with pytest.raises(ValueError, match="small.ipynb has no setting STOPS"):
            colab.execute(path, {"STOPS": 3})

    def test_a_text_to_change_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="small.ipynb has no 'width: 9' to change"):
            colab.execute(self.notebook(tmp_path, "width = 9"), changes={"width: 9": "width: 1"})

    def test_a_notebook_without_settings_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="small.ipynb has no cell tagged `parameters`"):
            colab.execute(self.notebook(tmp_path, "STEPS = 1", tags=()), {"STEPS": 3})

    def test_large_pictures_become_small(self):
        import io

        import numpy as np
        from PIL import Image

        noise = np.random.default_rng(0).integers(0, 256, (400, 500), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        assert len(file.getvalue()) > colab.LARGEST_PICTURE
        kind, small = colab.smaller(file.getvalue())
        assert kind == "image/jpeg" and len(small) <= 120_000
        kind, small = colab.smaller(self.flat())
        assert kind == "image/png"
        assert Image.open(io.BytesIO(small)).convert("RGB").getpixel((3, 3)) == (200, 30, 60)

    def flat(self) -> bytes:
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (40, 30), (200, 30, 60)).save(file, "PNG")
        return file.getvalue()
