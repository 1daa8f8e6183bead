"""The site: `make docs` writes it to build/site. Sphinx reads the Markdown pages as they lie in the repository.

The source folder is the repository itself, so that a link works here as it does on GitHub: from a page to a card in zoo/, to
results in benchmarks/. What is in the navigation is said below, not in the pages. The API pages are made here, from the
docstrings of every module.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from pathlib import Path

OPTIONAL = ("ai_edge_litert", "apache_beam", "faster_coco_eval", "roifile", "tensorflow_serving", "torch")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "docs"))

import docstrings
import notebooks
import zoo_page

import keras_seg

project = "keras_seg"
copyright = "the authors of keras_seg, Apache License 2.0"
release = version = keras_seg.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**",
    "zoo/*.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "export/*/README.md",
    "export/*/*/README.md",
    "colab/README.md",
    "colab/*/README.md",
]
# folders that are not searched at all
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "runs",
    "demo",
    "docs/_*",
    "**/node_modules",
    "benchmarks/.*",
    "tests",
]
nitpicky = False
suppress_warnings = [
    "myst.header",  # a README in a folder may begin at any level
    "ref.python",  # two classes of one short name in a signature
]

# Pages by section of the navigation. A page of docs/ that is missing here fails the build.
NAVIGATION = {
    "Start": ["docs/quickstart", "colab/README", "docs/zoo", "docs/conventions"],
    "How to": [
        "docs/segmenting",
        "docs/train_unet",
        "docs/coco_data",
        "docs/train_detector",
        "docs/scoring",
        "docs/weights",
        "docs/deploy",
        "docs/command_line",
        "docs/training_hosts",
        "docs/training_rpn",
        "docs/scale_out",
        "docs/native_op",
    ],
    "Coming from": [
        "docs/from_matterport",
        "docs/from_detectron2",
        "docs/from_model_garden",
        "docs/from_segmentation_models",
        "docs/sam",
    ],
    "Background": [
        "docs/architecture",
        "docs/performance",
        "docs/claims",
        "docs/reliability",
        "docs/cards",
        "docs/measurements",
        "docs/kits",
    ],
    "Reference": ["docs/api"],
    "Project": ["CONTRIBUTING", "CHANGELOG", "SECURITY"],
}
# Pages with pages of their own beneath them.
BENEATH = {
    "docs/cards": ["zoo/*"],
    "docs/measurements": ["benchmarks/README", "benchmarks/results/*"],
    "colab/README": ["docs/tutorials/*"],
    "docs/kits": ["export/*/README", "export/*/*/README", "colab/*/README"],
    "CONTRIBUTING": ["docs/contributing_*"],
    "docs/api": ["docs/api/*"],
}

html_theme = "furo"
html_title = f"keras_seg {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

default_role = "code"  # docstrings write `name`, as Markdown does
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
# Optional packages, for machines that do not have them.
autodoc_mock_imports = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # what a class's docstring says of a field, apart from the list of its fields
python_maximum_signature_line_length = 100

# Commands, and the demonstration, are for the shell.
NOT_LIBRARY = re.compile(r"keras_seg\.(cli|demo\w*|command_options|\w+_commands|_\w+)$")
API, TUTORIALS = ROOT / "docs/api", ROOT / "docs/tutorials"
# What most programs need comes first on the package's page.
FIRST = [
    "zoo",
    "segment",
    "detect",
    "instances",
    "visualize",
    "evaluate",
    "recipe",
    "recipe_models",
    "losses",
]


def setup(app) -> None:
    app.connect("builder-inited", lambda app: write_api_pages())
    app.connect("builder-inited", lambda app: zoo_page.write(ROOT))
    app.connect("builder-inited", lambda app: write_tutorials())
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", convert_docstring, priority=400)  # before napoleon
    app.connect("build-finished", write_first_page)


def add_navigation(app, page: str, source: list[str]) -> None:
    """Appends the tables of contents, which GitHub would show as code."""
    if page == root_doc:
        source[0] += "".join(toctree(names, section) for section, names in NAVIGATION.items())
    elif page in BENEATH:
        source[0] += toctree(BENEATH[page], glob=True)
    elif not source[0].lstrip().startswith("#") and not page.startswith("docs/api/"):  # a table of results
        source[0] = f"# {Path(page).name}\n\n{source[0]}"


def toctree(names: list[str], caption: str = "", *, glob: bool = False) -> str:
    """Only of pages that are there: some come with other parts of the project."""
    there = [name for name in names if any(ROOT.glob(f"{name}.md")) or any(ROOT.glob(f"{name}.rst"))]
    options = [f":caption: {caption}"] * bool(caption) + [":glob:"] * glob + [":hidden:", ":maxdepth: 1"]
    return "\n\n```{toctree}\n" + "\n".join([*options, "", *(f"/{name}" for name in there)]) + "\n```\n"


def write_first_page(app, failure: Exception | None) -> None:
    if failure is None and app.builder.name == "html":
        text = f'<meta http-equiv="refresh" content="0; url={root_doc}.html"><a href="{root_doc}.html">keras_seg</a>'
        (Path(app.outdir) / "index.html").write_text(text)


def modules() -> dict[str, list[str]]:
    """{package: its modules}, of all modules that a program would import."""
    found: dict[str, list[str]] = {"keras_seg": []}
    for module in pkgutil.walk_packages(keras_seg.__path__, "keras_seg."):
        if NOT_LIBRARY.match(module.name):
            continue
        package = module.name if module.ispkg else module.name.rpartition(".")[0]
        found.setdefault(package, [])
        if not module.ispkg:
            found[package].append(module.name)
    return found


def write_tutorials() -> None:
    """Pages that show the notebooks."""
    TUTORIALS.mkdir(exist_ok=True)
    wanted = {notebooks.write(notebook, TUTORIALS) for notebook in sorted((ROOT / "colab").glob("*.ipynb"))}
    for page in set(TUTORIALS.glob("*.md")) - wanted:
        page.unlink()


def write_api_pages() -> None:
    """A page for each package: what it is, what it gives under its own name, and its modules."""
    API.mkdir(exist_ok=True)
    wanted = set()
    for package, names in modules().items():
        page = API / f"{package}.rst"
        wanted.add(page)
        text = api_page(package, names)
        if not page.exists() or page.read_text() != text:  # an unchanged page is not read again
            page.write_text(text)
    for page in set(API.glob("*.rst")) - wanted:
        page.unlink()


def api_page(package: str, names: list[str]) -> str:
    lines = [package, "=" * len(package), "", f".. automodule:: {package}", "   :no-members:", ""]
    imported = importlib.import_module(package)
    for name in sorted(getattr(imported, "__all__", [])):
        thing = getattr(imported, name)
        if module := getattr(thing, "__module__", None):
            lines.append(f"- :py:obj:`{package}.{name} <{module}.{thing.__name__}>`")
    places = {f"keras_seg.{name}": place for place, name in enumerate(FIRST)}
    for name in sorted(names, key=lambda name: (places.get(name, len(places)), name)):
        short = name.removeprefix("keras_seg.")
        lines += ["", short, "-" * len(short), "", f".. automodule:: {name}"]
    return "\n".join([*lines, ""])


def convert_docstring(app, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    lines[:] = docstrings.to_rst(lines)
