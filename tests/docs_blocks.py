"""The code blocks of the documentation, and what can be said of each without running it.

A comment before a block says how it is tested, where that is not plain:

    <!-- test: not run: REASON -->              only parsed; the reason is printed by the tests
    <!-- test: run -->                          shell: its commands are run, not only parsed
    <!-- test: file NAME -->                    YAML: a recipe that later blocks need under this name
    <!-- test: file NAME, smaller: FIELD=VALUE ... -->  the same, but what is run has these fields
    <!-- test: stand-in: FILE -->               Python: weights that the test does not have, see `docs_files`
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "*.md",
    "docs/*.md",
    "zoo/*.md",
    "export/*/README.md",
    "export/*/*/README.md",
    "benchmarks/README.md",
)
PAGES += ("colab/README.md", "colab/*/README.md")
MARK = re.compile(r"<!--\s*test:\s*(not run|run|file|stand-in)(?::?\s*(.*?))?\s*-->", re.DOTALL)
SHELL = ("sh", "bash", "shell", "console")
# Languages of files that nobody here runs.
SHOWN = (
    "text",
    "diff",
    "dockerfile",
    "ini",
    "toml",
    "cpp",
    "c",
    "java",
    "html",
    "javascript",
    "js",
    "xml",
    "bibtex",
)
# Shell programs whose arguments are not looked at.
PROGRAMS = {
    ".", "source", "cd", "cp", "export", "mkdir", "pip", "pip3", "docker", "podman", "curl", "kubectl",
    "sbatch", "srun", "squeue", "scancel", "git", "apt", "npm", "npx", "node", "sed", "cmake", "g++", "bash",
    "sh", "echo", "cat", "ls", "unzip", "wget", "ssh", "rsync", "tensorboard", "jupyter", "pytest", "ruff",
    "mypy", "nvidia-smi", "env", "nohup", "watch", "tail", "head", "jq", "helm", "gcloud", "xargs", "find",
    "time", "twine", "sudo", "brew", "uv", "conda", ".venv/bin/pip", ".venv/bin/pytest", ".venv/bin/ruff",
    ".venv/bin/mypy",
}  # fmt: skip
CONNECTORS = {"|", "&&", "||", ";", "&"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line, from 1
    language: str
    text: str
    mark: str = ""  # "not run", "run", "file", "stand-in"
    argument: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def kind(self) -> str:
        """ "python", "shell", "yaml", "json" or "shown"."""
        if self.language in ("python", "py", "yaml", "json"):
            return {"py": "python"}.get(self.language, self.language)
        if self.language in SHELL:
            return "shell"
        if self.language == "":  # commands are sometimes written without a language
            return (
                "shell" if re.search(r"^(keras-seg|make|pip|python3?) ", self.text, re.MULTILINE) else "shown"
            )
        if self.language in SHOWN:
            return "shown"
        raise ValueError(
            f"{self.place}: a block of the language {self.language!r}; tests/docs_blocks.py knows none"
        )


def pages() -> list[Path]:
    found = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    return [
        path
        for path in found
        if not any(part.startswith(".") or part == "node_modules" for part in path.parts)
    ]


def blocks(page: Path) -> list[Block]:
    found, mark = [], None
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            if "test:" in token.content:
                mark = MARK.search(token.content)
                if mark is None:
                    raise ValueError(
                        f"{page}:{token.map[0] + 1}: {token.content.strip()} is no mark (tests/docs_blocks.py)"
                    )
        elif token.type == "fence":
            language = (token.info.split() or [""])[0].strip("{}").lower()
            kind, argument = (mark[1], " ".join((mark[2] or "").split())) if mark else ("", "")
            found.append(Block(page, token.map[0] + 2, language, token.content, kind, argument))
            mark = None
        elif token.type in ("paragraph_open", "heading_open") and mark:
            raise ValueError(f"{page}: {mark[0]} stands before no block")
    return found


def check_syntax(block: Block, cli) -> None:
    """Raises what is wrong with a block, without running it. cli: keras_seg's command line."""
    if block.kind == "python":
        compile(block.text, block.place, "exec")
    elif block.kind == "json":
        json.loads(block.text)
    elif block.kind == "yaml":
        for document in yaml.safe_load_all(block.text):
            check_yaml(document, block)
    elif block.kind == "shell":
        run = subprocess.run(
            ["bash", "-n"], check=False, input=unprompted(block.text), text=True, capture_output=True
        )
        if run.returncode:
            raise ValueError(f"{block.place}: {run.stderr.strip()}")
        for words in commands(block):
            check_command(words, block, cli)


def check_yaml(document: object, block: Block) -> None:
    """A recipe, or a part of one, must be a legal one."""
    from keras_seg import recipe, zoo

    if not isinstance(document, dict):
        return
    if "schema" in document:
        recipe.load_recipe(document)
        return
    if not document.keys() <= {"model", "data", "training", "expect"}:
        return  # of another program: Kubernetes, Docker Compose
    data = document.get("data", {})
    detector = (
        "proposals" in data or data.get("reader") == "coco" or "detector" in document.get("training", {})
    )
    base = zoo.show("maskrcnn_nuclei" if detector else "unet_isbi2012").model_dump(
        by_alias=True, exclude_unset=True
    )
    if "classes" in data:
        base["model"] |= {"class_names": list(data["classes"]), "classes": len(data["classes"])}
    for name, fields in document.items():
        base[name] = fields if "reader" in fields else {**base.get(name, {}), **fields}
    recipe.load_recipe(base)


def unprompted(text: str) -> str:
    return re.sub(r"^\$ ", "", text, flags=re.MULTILINE)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command. Of what is more than a list of commands (loops, here-documents) none."""
    text = unprompted(block.text).replace("\\\n", " ")
    if re.search(r"<<|^\s*(for|while|if|case)\b|\$\(", text, re.MULTILINE):
        return
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.commenters, lexer.whitespace_split = "#", True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in CONNECTORS:
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def check_command(words: list[str], block: Block, cli) -> None:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if any(word in (">", ">>", "<", "2>") for word in words):
        words = words[: next(n for n, word in enumerate(words) if word in (">", ">>", "<", "2>"))]
    if not words:
        return
    program, arguments = words[0], words[1:]
    if program in ("keras-seg", ".venv/bin/keras-seg"):
        check_arguments(arguments, block, cli)
    elif program == "make":
        run = subprocess.run(
            ["make", "-n", *arguments], check=False, cwd=ROOT, capture_output=True, text=True
        )
        if run.returncode:
            raise ValueError(f"{block.place}: make {' '.join(arguments)}: {run.stderr.strip()}")
    elif re.fullmatch(r"(\S*/)?python3?(\.\d+)?", program):
        if arguments and arguments[0].endswith(".py"):
            require_file(arguments[0], block)
    elif program.endswith((".sh", ".py")):
        require_file(program, block)
    elif program not in PROGRAMS and "/" not in program:  # a path: what the reader has just built
        raise ValueError(f"{block.place}: {program}: no command that tests/docs_blocks.py knows")


def require_file(name: str, block: Block) -> None:
    if not name.startswith(("/", "my_")) and not any(
        (folder / name).is_file() for folder in (ROOT, block.page.parent)
    ):
        raise ValueError(f"{block.place}: {name}: no such file in the repository")


def check_arguments(arguments: list[str], block: Block, cli) -> None:
    """Whether the command, its options and the number of its arguments are those of `keras-seg`."""
    command, names = cli, ["keras-seg"]
    context = cli.make_context("keras-seg", [], resilient_parsing=True)
    while hasattr(command, "list_commands"):
        if not arguments or arguments[0].startswith("-"):
            if set(arguments) - {"--help", "--version", "--install-completion", "--show-completion"}:
                raise ValueError(f"{block.place}: {' '.join(names)} has no option {arguments[0]}")
            return
        command = command.get_command(context, arguments[0])
        names.append(arguments[0])
        if command is None:
            raise ValueError(f"{block.place}: there is no {' '.join(names)}")
        arguments = arguments[1:]
    try:
        command.make_context(names[-1], list(arguments))
    except typer.Exit:  # --help
        return
    except typer.BadParameter.__base__ as error:  # any wrong use
        message = getattr(error, "message", None) or str(error)
        if "does not exist" in message:
            return
        raise ValueError(f"{block.place}: {' '.join(names)}: {message}") from None
