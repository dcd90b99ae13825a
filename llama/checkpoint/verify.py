"""Is this checkpoint whole, sound, and what it should be? One row for each question."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import LlamaError
from ..printable import reason
from ..prompts import infilling_prompt
from ..tokenizer import Tokenizer
from .files import some
from .format import axis_of
from .load import open_checkpoint, tokenizer_of
from .members import member_of
from .meta import MetaCheckpoint
from .source import Checkpoint, dtype_name, windows

__all__ = ["Finding", "verify"]

Told = Callable[[int], None]
_CHUNK = 8 << 20
# The published ids of one infilling prompt, for the vocabulary of 32016 pieces (prefix-suffix-middle).
_PREFIX, _SUFFIX = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"
_GOLDEN = (
    "1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851 29901 13 1678 9995 29871"
    " 32008 13 1678 736 1121 13 32009"
)
_GOLDEN_VOCABULARY = 32016


@dataclass(frozen=True)
class Finding:
    """One row: what was asked, "pass", "fail" or "skip", and why."""

    name: str
    status: str
    why: str


def verify(
    folder: Path, *, tokenizer_path: Path | None = None, quick: bool = False, progress: Told = lambda _: None
) -> Iterator[Finding]:
    """Check a folder in either layout, a row at a time; a row that needs what another could not open is skipped.

    Args:
        tokenizer_path: by default tokenizer.model in the folder.
        quick: skip what reads all bytes: checksums and values.
        progress: is told bytes as they are read.
    """
    yield _checksums(folder, quick, progress)
    try:
        checkpoint = open_checkpoint(folder, agree=False)
    except LlamaError as error:
        yield Finding("tensors", "fail", reason(error))
        for name in ("shard agreement", "values", "tokenizer", "infilling ids", "rope_theta"):
            yield Finding(name, "skip", "the tensors cannot be opened")
        return
    count = len(checkpoint.shapes)
    where = f"{checkpoint.shards} file{'s' if checkpoint.shards > 1 else ''}"
    yield Finding(
        "tensors",
        "pass",
        f"{count} tensors of {dtype_name(checkpoint.dtype)} in {where}, shapes as configured",
    )
    yield _agreement(checkpoint)
    yield _values(checkpoint, quick, progress)
    yield from _tokenizer(checkpoint, tokenizer_path)
    yield _rope_theta(checkpoint)


def _checksums(folder: Path, quick: bool, progress: Told) -> Finding:
    name = "checksums"
    path = folder / "checklist.chk"
    if quick:
        return Finding(name, "skip", "--quick")
    if not path.is_file():
        return Finding(name, "skip", "there is no checklist.chk")
    wanted: dict[str, str] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"([0-9a-fA-F]{32}) [ *](?:\./)?(\S.*)", line.strip())
            if line.strip() and (match is None or Path(match[2]).name != match[2]):
                return Finding(
                    name, "fail", f"checklist.chk has the line {line[:80]!r}, not an md5 and a file name"
                )
            if match is not None:
                wanted[match[2]] = match[1].lower()
        problems = []
        for each, digest in wanted.items():
            if not (folder / each).is_file():
                problems.append(f"{each} is missing")
            elif _md5(folder / each, progress) != digest:
                problems.append(f"{each} is not what checklist.chk says; download it again")
    except (OSError, UnicodeDecodeError) as error:
        return Finding(name, "fail", f"cannot be read: {reason(error)}")
    unlisted = [p.name for p in folder.glob("consolidated.*.pth") if p.name not in wanted]
    problems += [f"{each} is not in checklist.chk" for each in sorted(unlisted)]
    if not wanted:
        problems.append("checklist.chk is empty")
    if problems:
        return Finding(name, "fail", "; ".join(problems))
    return Finding(name, "pass", f"{len(wanted)} files have the md5 in checklist.chk")


def _md5(path: Path, progress: Told) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def _agreement(checkpoint: Checkpoint) -> Finding:
    name = "shard agreement"
    if not isinstance(checkpoint, MetaCheckpoint) or checkpoint.shards == 1:
        return Finding(name, "skip", "every weight is stored once")
    problems = checkpoint.disagreements()
    if problems:
        return Finding(name, "fail", f"{some(problems)}: the shards are of different models")
    replicated = sum(axis_of(each) is None for each in checkpoint.shapes)
    return Finding(
        name, "pass", f"{replicated} replicated weights are the same in all {checkpoint.shards} shards"
    )


def _values(checkpoint: Checkpoint, quick: bool, progress: Told) -> Finding:
    name = "values"
    if quick:
        return Finding(name, "skip", "--quick")
    problems = []
    total = 0
    for tensor, path, value in checkpoint.stored():
        total += value.numel()
        bad, zero = 0, True
        for _, window in windows(value):
            bad += window.numel() - int(window.isfinite().sum())
            zero = zero and not bool(window.any())
            progress(window.nbytes)
        if bad:
            problems.append(f"{tensor} in {path.name} has {bad:,} values that are NaN or infinite")
        elif zero and value.numel():
            problems.append(f"{tensor} in {path.name} is all zero")
    if problems:
        return Finding(name, "fail", some(problems))
    return Finding(name, "pass", f"all {total:,} are finite")


def _tokenizer(checkpoint: Checkpoint, path: Path | None) -> Iterator[Finding]:
    try:
        tokenizer = tokenizer_of(checkpoint, path)
    except LlamaError as error:
        yield Finding("tokenizer", "fail", reason(error))
        yield Finding("infilling ids", "skip", "no tokenizer")
        return
    yield Finding("tokenizer", "pass", f"{tokenizer.n_words:,} pieces, as many as the embedding has rows")
    yield _infilling(tokenizer)


def _infilling(tokenizer: Tokenizer) -> Finding:
    name = "infilling ids"
    if not tokenizer.supports_infilling:
        return Finding(name, "skip", "the vocabulary has no infilling pieces")
    if tokenizer.n_words != _GOLDEN_VOCABULARY:
        return Finding(name, "skip", "a vocabulary of its own, for which no ids are published")
    found = " ".join(map(str, infilling_prompt(tokenizer, _PREFIX, _SUFFIX).tokens))
    if found != _GOLDEN:
        return Finding(name, "fail", f"the published prompt has ids {_GOLDEN}, this tokenizer gives {found}")
    return Finding(name, "pass", "the published prompt has its published ids")


def _rope_theta(checkpoint: Checkpoint) -> Finding:
    name = "rope_theta"
    args = checkpoint.args
    member = member_of(args)
    if member is None:
        return Finding(
            name, "skip", f"it is {args.rope_theta:,.0f}; the shapes are of no member of the family"
        )
    allowed = (1e6, 1e4) if member.name == "70B" else (1e6,)
    if args.rope_theta in allowed:
        return Finding(name, "pass", f"{args.rope_theta:,.0f}, as Code Llama {member.name} was trained")
    config = "params.json" if checkpoint.layout == "Meta" else "config.json"
    return Finding(
        name,
        "fail",
        f"it is {args.rope_theta:,.0f}, but Code Llama {member.name} was trained with 1,000,000: with another value"
        f" its answers fall apart after a few tokens. Correct rope_theta in {config}; or this is Llama 2"
        f" {member.name}, which has the same shapes and 10,000",
    )
