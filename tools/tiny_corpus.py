"""The corpus of CodeLlama-tiny: the running interpreter's own standard library, and what is held out of it.

Everything is read from `sysconfig.get_path("stdlib")`, so anyone who has Python has the training data. It is
sorted into the library, its test suites (used at a lower weight) and the held-out modules with their tests. A
document that shares a run of lines with held-out text is dropped and named, so that the held-out loss is
honest.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = (
    *("bisect", "calendar", "colorsys", "fnmatch", "fractions", "graphlib"),
    *("heapq", "queue", "reprlib", "shlex", "statistics", "textwrap"),
)
# Tables and generated text, which would teach the tokenizer hex digits and the model nothing.
GENERATED = re.compile(
    r"^(encodings/|pydoc_data/|_sysconfigdata|html/entities\.py|lib2to3/tests/data/|test/encoded_modules/"
    r"|test/cjkencodings|test/(decimaltestdata|xmltestdata|ziptestdata|tokenizedata)/|config-)"
)
TEST_DIRECTORY = re.compile(r"(^|/)(tests?|idle_test)/")
SHARED_RUN = 5


@dataclass(frozen=True)
class Document:
    """One source file: its path inside the library and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Function:
    """A function with a docstring, moved to column 0."""

    signature: str
    summary: str  # the docstring's first paragraph on one line
    docstring: str
    head: str  # from `def` to the end of the docstring, without the newline
    bare: str  # the source without the docstring
    source: str


@dataclass(frozen=True)
class Corpus:
    library: list[Document]
    tests: list[Document]
    held_out: list[Document]
    held_out_tests: list[Document]
    dropped: list[str]


def _read_documents(root: Path) -> Iterator[Document]:
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages/" in name or GENERATED.search(name):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        text = text.replace("\r\n", "\n")
        # SentencePiece writes a space as U+2581, so a text with that character would not survive a round
        # trip.
        if len(text) >= 200 and "\u2581" not in text and not _is_table(text):
            yield Document(name, text)


def _is_table(text: str) -> bool:
    """Whether digits, signs and foreign letters outweigh words, as in generated tables."""
    words = sum(map(len, re.findall(r"[A-Za-z_]{2,}", text)))
    visible = sum(map(len, text.split()))
    return words < 0.45 * visible or max(map(len, text.split("\n"))) > 2000


def _is_held_out_test(name: str) -> bool:
    stem = Path(name).stem
    return TEST_DIRECTORY.search(name) is not None and any(
        stem in (f"test_{module}", f"{module}_tests") for module in HELD_OUT
    )


def _runs(text: str) -> Iterator[int]:
    """A hash of each run of SHARED_RUN consecutive lines, without blank and trivial lines."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if sum(map(str.isalnum, line)) >= 6]
    for start in range(len(lines) - SHARED_RUN + 1):
        yield hash(tuple(lines[start : start + SHARED_RUN]))


def read_corpus() -> Corpus:
    """Read the running interpreter's library and sort it."""
    held_names = {f"{module}.py" for module in HELD_OUT}
    held: list[Document] = []
    held_tests: list[Document] = []
    rest: list[Document] = []
    for document in _read_documents(Path(sysconfig.get_path("stdlib"))):
        if document.name in held_names:
            held.append(document)
        else:
            (held_tests if _is_held_out_test(document.name) else rest).append(document)
    forbidden = {run for document in held + held_tests for run in _runs(document.text)}
    library: list[Document] = []
    tests: list[Document] = []
    dropped: list[str] = []
    for document in rest:
        if not forbidden.isdisjoint(_runs(document.text)):
            dropped.append(document.name)
        else:
            (tests if TEST_DIRECTORY.search(document.name) else library).append(document)
    return Corpus(library, tests, held, held_tests, dropped)


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old libraries hold invalid escapes
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError):
            return None


def parses(text: str) -> bool:
    """Whether text is a Python module."""
    return _parse(text) is not None


def functions(document: Document) -> Iterator[Function]:
    """Functions and methods that have a docstring and a body after it."""
    tree = _parse(document.text)
    lines = document.text.split("\n")
    for node in ast.walk(tree) if tree else ():
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) < 2 or node.body[1].lineno <= (node.body[0].end_lineno or 0):
            continue
        first, doc_first, doc_last = node.lineno - 1, node.body[0].lineno - 1, node.body[0].end_lineno or 0
        source = textwrap.dedent("\n".join(lines[first : node.end_lineno]))
        if not source.startswith(("def ", "async def ")) or not parses(source):
            continue
        moved = source.split("\n")
        yield Function(
            signature=f"{node.name}({ast.unparse(node.args)})",
            summary=" ".join(docstring.split("\n\n")[0].split()),
            docstring=docstring,
            head="\n".join(moved[: doc_last - first]),
            bare="\n".join(moved[: doc_first - first] + moved[doc_last - first :]),
            source=source,
        )
