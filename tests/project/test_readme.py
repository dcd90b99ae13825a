"""The README and the pages of docs/ say what is so: links and paths lead somewhere, commands parse, snippets run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from ranks import HANGS
from torch.distributed.run import get_args_parser

from llama import cli
from llama.sizing.estimate import table

# The project's root, wherever the tests stand in it.
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
LOG = ROOT / "docs" / "log.md"
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]
# These tell what was: files of that day need not be there any more.
HISTORY = {LOG, ROOT / "CHANGELOG.md"}
PRESENT = [page for page in PAGES if page not in HISTORY]
RUNNABLE = [README, ROOT / "docs" / "library.md"]

# Named on the pages, but not in the project: files of checkpoints, and of other programs.
ELSEWHERE = {"params.json", "config.json", "tokenizer.json", "README.md"}
_SUFFIXES = (".py", ".c", ".h", ".md", ".sh", ".lock", ".toml")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A fenced block: the word behind its fence, and its lines."""

    language: str
    text: str


@cache
def read(page: Path) -> tuple[str, list[Block]]:
    """A page's prose without its fenced blocks, and these."""
    prose: list[str] = []
    blocks: list[Block] = []
    inside: list[str] | None = None
    language = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if inside is None:
                inside, language = [], line.strip("`").strip()
            else:
                blocks.append(Block(language, "\n".join(inside) + "\n"))
                inside = None
        elif inside is None:
            prose.append(line)
        else:
            inside.append(line)
    assert inside is None, f"{page}: a fence is not closed"
    return "\n".join(prose), blocks


def spans(page: Path) -> list[str]:
    """What a page's prose has in backticks; a span may go on in the next line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", read(page)[0])]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", read(page)[0], re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


# ---- the README's size, links, paths ---------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)[0]):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@cache
def files() -> list[str]:
    """All files of the project as /paths, as git would list them."""
    skipped = {".git", "build", "node_modules", "__pycache__", "shared"}
    folders, found = [ROOT], []
    for folder in folders:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                name, others = path.name, (".egg-info", "_cache")
                if name not in skipped and not name.startswith(".venv") and not name.endswith(others):
                    folders.append(path)
            else:
                found.append(f"/{path.relative_to(ROOT).as_posix()}")
    return found


def is_there(path: str, folder: str | None) -> bool:
    """Whether a path as the pages write it is of the project.

    From the root; or, of a row in a table about `folder`, from there; or the end of a file's path, as `engine.py`.
    """
    if folder is not None and path.endswith(_SUFFIXES):
        return (ROOT / folder / path).is_file() or (ROOT / path).is_file()
    if "*" in path:
        return any(ROOT.glob(path))
    return (ROOT / path).exists() or any(file.endswith(f"/{path}") for file in files())


@pytest.mark.parametrize("page", PRESENT, ids=name)
def test_every_path_is_there(page: Path) -> None:
    """Of backticked words those that look like a path of the project: its folders, or files of its own kinds."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    missing = []
    folder: str | None = None
    for line in read(page)[0].splitlines():
        if not line.startswith("|"):
            folder = None
        elif of := re.match(r"\| file in `([^`]+)` \|", line):
            folder = of[1]
        for span in re.findall(r"`([\w./*-]+)`", line):
            of_a_top = "/" in span and span.split("/")[0] in tops
            if span in ELSEWHERE or not (of_a_top or span.endswith(_SUFFIXES)):
                continue
            if not is_there(span, folder):
                missing.append(span)
    for block in read(page)[1]:
        # Pictures name folders and files at the end of their lines.
        missing += [
            path for path in re.findall(r"  (llama/\S*)$", block.text, re.M) if not is_there(path, None)
        ]
    assert missing == []


# ---- tables and output -----------------------------------------------------------------------------------


def test_the_memory_table_is_what_estimate_prints() -> None:
    assert table() + "\n" in (ROOT / "docs" / "family.md").read_text(encoding="utf-8")


# ---- commands ----------------------------------------------------------------------------------------------

_PROGRAMS = ("codellama", "make", "torchrun", "python", "bash")


@dataclass(frozen=True)
class Command:
    """A command line of a page. whole: it stands in a fenced block, so it is meant to be typed as it is."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands(*programs: str) -> list[Command]:
    """The pages' command lines of some programs: in fenced blocks, behind `$ ` or not, and in backticks."""
    found = {}
    for page in PRESENT:
        blocks = read(page)[1]
        lines = [
            (line, True) for block in blocks if block.language != "python" for line in block.text.splitlines()
        ]
        for line, whole in [*lines, *((span, False) for span in spans(page))]:
            line = line.strip().removeprefix("$ ")
            if line.split(" ")[0] not in programs:
                continue
            with contextlib.suppress(ValueError):  # an apostrophe: a sentence that begins so
                words = tuple(shlex.split(line, comments=True))
                found[page, words] = Command(name(page), words, whole)
    return list(found.values())


def test_there_are_commands_of_each_kind() -> None:
    for program in _PROGRAMS:
        assert len(commands(program)) > 1, program


def parsed(words: tuple[str, ...]) -> argparse.Namespace:
    try:
        return cli.make_parser().parse_args(words)
    except SystemExit as error:
        raise AssertionError(f"codellama {shlex.join(words)} does not parse") from error


@pytest.mark.parametrize("command", commands("codellama"), ids=str)
def test_codellama_takes_it(command: Command) -> None:
    verb, *more = command.words[1:] or ["--help"]
    if (more or command.whole) and more != ["--help"]:
        assert parsed((verb, *more)).run
    else:  # the verb is spoken of
        with pytest.raises(SystemExit) as ended:
            cli.make_parser().parse_args((verb, "--help") if verb != "--help" else ("--help",))
        assert ended.value.code == 0


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_make_has_the_target(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in command.words[1:]:
        pattern = rf"^{word.partition('=')[0]} *\?=" if "=" in word else rf"^{re.escape(word)}:"
        assert re.search(pattern, makefile, re.MULTILINE), word


@cache
def download_help() -> str:
    run = subprocess.run(
        ["bash", ROOT / "download.sh", "--help"], capture_output=True, text=True, timeout=HANGS, check=True
    )
    return run.stdout


@pytest.mark.parametrize("command", commands("bash"), ids=str)
def test_download_takes_it(command: Command) -> None:
    assert command.words[1] == "download.sh"
    for word in command.words[2:]:
        if word.startswith("--"):
            assert re.search(rf"^  {re.escape(word)} ", download_help(), re.MULTILINE), word


@cache
def module(script: str) -> ModuleType:
    """An example, imported; importing one runs nothing."""
    spec = importlib.util.spec_from_file_location(f"of_the_readme_{Path(script).stem}", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def flags(words: list[str]) -> Iterator[str]:
    return (word[2:].partition("=")[0] for word in words if word.startswith("--"))


def check_script(script: str, words: list[str]) -> None:
    """A script of the project takes these flags: an example by the signature of its main, another by its source."""
    assert (ROOT / script).is_file(), script
    if script.startswith("example_"):
        known = set(inspect.signature(module(script).main).parameters)
        assert set(flags(words)) <= known, set(flags(words)) - known
    else:
        source = (ROOT / script).read_text(encoding="utf-8")
        mains = [
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and (node.name == "main" or node.name in words)
        ]
        known = {arg.arg for main in mains for arg in [*main.args.args, *main.args.kwonlyargs]}
        for flag in flags(words):
            assert flag in known or f'"--{flag}"' in source or f'get("{flag}"' in source, flag


@pytest.mark.parametrize("command", commands("torchrun"), ids=str)
def test_torchrun_takes_it(command: Command) -> None:
    if len(command.words) == 1:
        return  # the program is spoken of
    options = get_args_parser().parse_args(command.words[1:])
    script, words = options.training_script, options.training_script_args
    if options.module:  # `-m llama VERB ...`
        assert script == "llama"
        assert not words or parsed(tuple(words)).run
    else:
        check_script(script, words)


@pytest.mark.parametrize("command", commands("python"), ids=str)
def test_python_takes_it(command: Command) -> None:
    words = list(command.words[1:])
    if not words or words[:2] == ["-m", "venv"]:
        return  # the program is spoken of
    if words[:2] == ["-m", "llama"]:
        if len(words) > 3:
            parsed(tuple(words[2:]))
        return
    script, *more = words
    check_script(script, [word for word in more if word != "..."])


# ---- what runs --------------------------------------------------------------------------------------


# Each process of its own spends seconds on importing torch, so there are two launches, not one for each command.
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_line_of_torchrun_as_it_stands() -> None:
    """The README's first one for two ranks, on the bundled checkpoint in place of Meta's."""
    lines = [each.words[1:] for each in commands("torchrun") if each.page == "README.md"]
    words = next(words for words in lines if words[:2] == ("--nproc_per_node", "2"))
    words = tuple(re.sub(r"^CodeLlama-[\w-]+", "CodeLlama-tiny", word) for word in words)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, "--max_gen_len", "8"],
        cwd=ROOT,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("> Assistant: ") == 2  # two dialogs, on the first rank only


# Runs programs given on stdin as lists of blocks: each program in a namespace of its own, a mark behind each block.
_MARK = "==== end of a block ===="
_RUN = f"""
import json, sys
for number, blocks in enumerate(json.load(sys.stdin)):
    names = {{"__name__": "__main__"}}
    for place, block in enumerate(blocks):
        exec(compile(block, f"program {{number + 1}}, block {{place + 1}}", "exec"), names)
        print("\\n{_MARK}", flush=True)
"""


def outputs(*programs: list[str]) -> list[list[str]]:
    """What each block of each program prints."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN],
        input=json.dumps(programs),
        cwd=ROOT,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    printed = iter(run.stdout.split(_MARK))
    return [[next(printed) for _ in blocks] for blocks in programs]


def check_output(block: str, output: str) -> None:
    """A block with a print prints something; behind `# -> text` on its line, a line with that text, in order."""
    assert bool(output.strip()) == ("print(" in block), block
    rest = output
    for said in re.findall(r"print\(.*# -> (.+)", block):
        assert said in rest, f"{said!r} is not in {output!r}"
        rest = rest.partition(said)[2]


def demo() -> list[str]:
    """The lines of `make demo`, as programs that call the examples in this process."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    return [
        f"import runpy, sys; sys.argv = {shlex.split(line)[1:]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
        for line in recipe[1].splitlines()
    ]


@pytest.mark.slow
def test_snippets_and_demo_print_what_the_pages_say() -> None:
    """All blocks of a page in one namespace. Of the demo, the README's lines in order, with others between them."""
    pages = [[block.text for block in read(page)[1] if block.language == "python"] for page in RUNNABLE]
    assert min(map(len, pages)) > 1
    *printed, examples = outputs(*pages, demo())
    for blocks, texts in zip(pages, printed, strict=True):
        for block, text in zip(blocks, texts, strict=True):
            check_output(block, text)
    excerpt = next(block.text for block in read(README)[1] if "= Filled text =" in block.text)
    rest = iter("".join(examples).splitlines())
    assert [line for line in excerpt.splitlines() if line and line not in rest] == []
