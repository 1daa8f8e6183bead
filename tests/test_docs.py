"""Each code block of the documentation runs, or is at least what the program would accept; the site builds without a warning."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import docs_blocks
import docs_files
import pytest
from docs_blocks import ROOT, Block, blocks, pages

REASON = 3  # words that a reason has at least


def to_run(block: Block) -> bool:
    if block.mark == "not run":
        return False
    return block.kind == "python" or (block.kind, block.mark) in (("shell", "run"), ("yaml", "file"))


WITH_CODE = [page for page in pages() if any(block.kind != "shown" for block in blocks(page))]
RUNNING = [
    page for page in WITH_CODE if any(to_run(b) and b.kind in ("python", "shell") for b in blocks(page))
]
NOT_RUN = [block for page in WITH_CODE for block in blocks(page) if block.mark == "not run"]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def files(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    docs_files.write_files(folder, shared)
    return folder


@pytest.fixture(scope="module")
def zoo():
    from keras_seg import zoo

    stand_ins = docs_files.Zoo(zoo.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load", stand_ins.load)
        yield stand_ins


@pytest.fixture(scope="module")
def cli():
    import typer

    from keras_seg import cli

    return typer.main.get_command(cli.app)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_blocks_are_accepted(page, cli):
    for block in blocks(page):
        docs_blocks.check_syntax(block, cli)


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_blocks_run(page, files, zoo, run, tmp_path, monkeypatch):
    chosen = [block for block in blocks(page) if to_run(block)]
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    zoo.reset([block.argument for block in chosen if block.mark == "stand-in"])
    variables: dict = {"__name__": "__main__"}
    for block in chosen:
        if block.kind == "python":
            # empty lines before it, so that a traceback names the page's line
            exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), variables)  # noqa: S102
        elif block.kind == "yaml":
            write_recipe(block, tmp_path)
        else:
            for words in docs_blocks.commands(block):
                status, _, errors = run(*words[1:])
                assert status in (0, None), f"{block.place}: {' '.join(words)}: {errors}"


def write_recipe(block: Block, folder: Path) -> None:
    import yaml

    from keras_seg.recipe import load_recipe

    file, _, smaller = block.argument.partition(", smaller: ")
    fields = dict(field.split("=", 1) for field in smaller.split())
    recipe = load_recipe(yaml.safe_load(block.text))
    recipe = recipe.override({field: yaml.safe_load(value) for field, value in fields.items()})
    content = recipe.model_dump(by_alias=True, exclude_unset=True, mode="json")
    (folder / file).write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_what_is_not_run_says_why(block):
    assert len(block.argument.split()) >= REASON, f"{block.place}: a reason that a reader understands"
    pytest.skip(f"{block.place}: not run: {block.argument}")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built with warnings as errors: links, references, navigation and docstrings are in order."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", "docs", "."]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command += ["-d", folder / "doctrees", folder / "html"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def test_the_site_has_every_page(site):
    missing = [
        name(page) for page in (ROOT / "docs").glob("*.md") if not (site / f"docs/{page.stem}.html").exists()
    ]
    assert not missing
    assert "README.html" in (site / "index.html").read_text()


def test_every_public_name_is_in_the_reference(site):
    """Each function and class that a module lists, or that has no underscore, by the name of the module that defines it."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert {
        "keras_seg.zoo.load",
        "keras_seg.segment.segment",
        "keras_seg.instances.Instances.to_coco",
    } <= documented
    commands = re.compile(r"(cli|demo\w*|command_options|\w+_commands)$")
    absent = []
    for file in sorted((ROOT / "keras_seg").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        if any(part.startswith("_") and part != "__init__" for part in parts) or commands.match(parts[-1]):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8")).body
        listed = [
            ast.literal_eval(node.value) for node in tree if isinstance(node, ast.Assign) and is_all(node)
        ]
        for node in tree:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            is_public = node.name in listed[0] if listed else not node.name.startswith("_")
            if is_public and f"{module}.{node.name}" not in documented:
                absent.append(f"{module}.{node.name}")
    assert not absent


def is_all(node: ast.Assign) -> bool:
    return [getattr(target, "id", "") for target in node.targets] == ["__all__"]


def test_the_site_needs_no_network(site):
    """What a page loads by itself, search included, lies beside it; but for the badges that lead to other sites."""
    loaded = set()
    for page in site.rglob("*.html"):
        loaded |= set(
            re.findall(r'<(?:script|link|iframe)[^>]*(?:src|href)="(https?://[^"]+)', page.read_text())
        )
    assert not loaded
    assert (site / "searchindex.js").stat().st_size > 100_000


def test_the_zoo_page_is_that_of_the_recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import zoo_page

    assert (ROOT / "docs/zoo.md").read_text() == zoo_page.page(ROOT), "make docs writes docs/zoo.md anew"
    measured = json.loads((ROOT / "benchmarks/results/zoo.json").read_text())["models"]
    from keras_seg import zoo

    names = {model for model in zoo.list() if "/" not in model}
    assert names == set(measured), ".venv/bin/python benchmarks/zoo.py measures what is missing"
    small = "unet_isbi2012"
    assert zoo.load(small, weights=None).count_params() == measured[small]["parameters"]


def test_a_mark_without_a_block_or_of_no_kind_is_refused(tmp_path):
    page = tmp_path / "page.md"
    for text, message in (
        ("<!-- test: not run: because -->\n\nText.\n", "stands before no block"),
        ("<!-- test: later -->\n```sh\nls\n```\n", "is no mark"),
    ):
        page.write_text(text)
        with pytest.raises(ValueError, match=message):
            blocks(page)


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("sh", "keras-seg segment unet_isbi2012 a.png -o b.png --rotation 3", "--rotation"),
        ("sh", "keras-seg segmant unet_isbi2012 a.png", "there is no keras-seg segmant"),
        ("sh", "keras-seg segment unet_isbi2012 \\\n  -o", "-o"),
        ("", "make no-such-target", "no-such-target"),
        ("sh", "python benchmarks/absent.py", "absent.py: no such file"),
        ("sh", "if then", "syntax error"),
        ("sh", "unheard-of --option", "no command that"),
        ("python", "print(", "never closed"),
        ("json", '{"a": }', "Expecting value"),
        ("yaml", "training: {stepps: 3}", "stepps"),
        ("yaml", "schema: 1\nname: a\nsummary: b\nmodel: {builder: unett}", "unett"),
        ("cobol", "MOVE A TO B.", "cobol"),
    ],
)
def test_what_a_reader_could_not_use_is_refused(language, text, message, cli):
    block = Block(ROOT / "README.md", 1, language, text)
    with pytest.raises((ValueError, SyntaxError), match=re.escape(message)):
        docs_blocks.check_syntax(block, cli)
