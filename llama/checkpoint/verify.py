"""Checks whether a checkpoint is complete, undamaged, and the model it should be: one row for each check."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, LlamaError
from ..printable import reason, shown
from ..prompts import infilling_prompt
from ..sizing.family import member_of
from ..sizing.shapes import axis_of
from ..tokenizer import Tokenizer
from .base import Checkpoint, dtype_name
from .files import is_there, read_small, some
from .lora import with_adapter
from .opening import open_checkpoint, tokenizer_of
from .weight_files.pth import records_of
from .weight_files.zip_directory import CrcCheck

__all__ = ["Finding", "verify"]

Progress = Callable[[int], None]
_CHUNK = 8 << 20
# Limit of a checklist.chk in bytes; it has one line for each file.
_MOST_CHECKLIST = 1 << 20
# The published ids of one infilling prompt (prefix-suffix-middle), for the vocabulary of 32,016 pieces.
_PREFIX, _SUFFIX = 'def remove_non_ascii(s: str) -> str:\n    """ ', "\n    return result\n"
_GOLDEN = (
    "1 32007 822 3349 29918 5464 29918 294 18869 29898 29879 29901 851 29897 1599 851 29901 13 1678 9995 29871"
    " 32008 13 1678 736 1121 13 32009"
)
_GOLDEN_VOCABULARY = 32016


@dataclass(frozen=True)
class Finding:
    """One row: the check, its status ("pass", "fail" or "skip"), and why."""

    name: str
    status: str
    why: str


def verify(
    folder: Path,
    *,
    tokenizer_path: Path | None = None,
    quick: bool = False,
    adapter: Path | None = None,
    progress: Progress = lambda _: None,
) -> Iterator[Finding]:
    """Check a folder in any layout or a GGUF, one row at a time.

    If the tensors cannot be opened, rows that need them are skipped.

    Args:
        folder: a folder, or a GGUF file.
        tokenizer_path: by default tokenizer.model in the folder.
        quick: skip the checks that read every byte: checksums and values.
        adapter: the folder of a LoRA adapter, to check whether it fits; its values are checked too.
        progress: called with the bytes read.
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
        f"{count} tensors of {checkpoint.quantization or dtype_name(checkpoint.dtype)} in {where}, shapes as"
        " configured",
    )
    if adapter is not None:
        try:
            checkpoint = adapted = with_adapter(checkpoint, adapter)
            yield Finding("adapter", "pass", str(adapted.adapter))
        except LlamaError as error:
            yield Finding("adapter", "fail", reason(error))
    yield _read("shard agreement", lambda: _agreement(checkpoint))
    yield _read("values", lambda: _values(checkpoint, quick, progress))
    yield from _tokenizer(checkpoint, tokenizer_path)
    yield _rope_theta(checkpoint)


def _checksums(folder: Path, quick: bool, progress: Progress) -> Finding:
    """Compares the md5 of each file in checklist.chk, and the CRCs that torch.save writes into its files."""
    name = "checksums"
    if quick:
        return Finding(name, "skip", "--quick")
    if folder.is_file():
        return Finding(name, "skip", "a GGUF holds none")
    listed = is_there(folder / "checklist.chk")
    archives = sorted({*folder.glob("consolidated.*.pth"), *folder.glob("pytorch_model*.bin")})
    if not listed and not archives:
        return Finding(name, "skip", "there is no checklist.chk")
    problems = []
    checked = 0
    try:
        wanted = _checklist(folder / "checklist.chk") if listed else {}
        for each in [*wanted, *(path.name for path in archives if path.name not in wanted)]:
            if not (folder / each).is_file():
                problems.append(f"{each} is missing")
                continue
            digest, crcs = _sums(folder / each, progress)
            checked += crcs.known
            if wanted.get(each, digest) != digest:
                problems.append(f"{each} does not have the md5 in checklist.chk; download it again")
            elif wrong := [shown(record) for record in crcs.wrong()]:
                problems.append(f"{each} is damaged: {some(wrong)} does not match its CRC; download it again")
    except (_ChecklistError, CheckpointError) as error:
        return Finding(name, "fail", str(error))
    except OSError as error:
        return Finding(name, "fail", f"{error.filename} cannot be read: {reason(error)}")
    except UnicodeDecodeError as error:
        return Finding(name, "fail", f"checklist.chk cannot be read: {error}")
    if listed:
        unlisted = [path.name for path in archives if path.suffix == ".pth" and path.name not in wanted]
        problems += [f"{each} is not in checklist.chk" for each in unlisted]
        if not wanted:
            problems.append("checklist.chk is empty")
    if problems:
        return Finding(name, "fail", some(problems))
    crc = f"{checked} of {len(archives)} weight files have the CRCs written in them" if archives else ""
    if listed:
        return Finding(name, "pass", f"{len(wanted)} files have the md5 in checklist.chk{crc and ', ' + crc}")
    return Finding(name, "pass" if checked else "skip", f"there is no checklist.chk; {crc}")


class _ChecklistError(Exception):
    """A line of checklist.chk is malformed."""


def _checklist(path: Path) -> dict[str, str]:
    """checklist.chk -> the md5 of each file, by name."""
    wanted: dict[str, str] = {}
    for line in read_small(path, "fetch it again", _MOST_CHECKLIST).decode("utf-8").splitlines():
        match = re.fullmatch(r"([0-9a-fA-F]{32}) [ *](?:\./)?(\S.*)", line.strip())
        if line.strip() and (match is None or Path(match[2]).name != match[2]):
            raise _ChecklistError(f"checklist.chk has the line {line[:80]!r}, not an md5 and a file name")
        if match is not None:
            wanted[match[2]] = match[1].lower()
    return wanted


def _sums(path: Path, progress: Progress) -> tuple[str, CrcCheck]:
    """The md5 of a file and, for a .pth, the CRCs of its records, in one pass."""
    digest = hashlib.md5(usedforsecurity=False)
    crcs = CrcCheck(records_of(path) if path.suffix in (".pth", ".bin") else {})
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            crcs.feed(chunk)
            progress(len(chunk))
    return digest.hexdigest(), crcs


def _read(name: str, row: Callable[[], Finding]) -> Finding:
    """Run a check that reads weights. It fails if their file is truncated meanwhile."""
    try:
        return row()
    except LlamaError as error:
        return Finding(name, "fail", str(error))


def _agreement(checkpoint: Checkpoint) -> Finding:
    name = "shard agreement"
    if checkpoint.mp_shards in (None, 1):
        return Finding(name, "skip", "every weight is stored once")
    problems = checkpoint.disagreements()
    if problems:
        return Finding(name, "fail", f"{some(problems)}: the shards are of different models")
    replicated = sum(axis_of(each) is None for each in checkpoint.shapes)
    return Finding(
        name, "pass", f"{replicated} replicated weights are the same in all {checkpoint.mp_shards} shards"
    )


def _values(checkpoint: Checkpoint, quick: bool, progress: Progress) -> Finding:
    name = "values"
    if quick:
        return Finding(name, "skip", "--quick")
    problems = []
    total = 0
    for tensor, path, value in checkpoint.stored():
        total += value.numel()
        bad, zero = 0, True
        row_bytes = value.stride(0) * value.element_size()  # scales lie between the codes of a row
        for _, window in checkpoint.windows(value):
            bad += window.numel() - int(window.isfinite().sum())
            zero = zero and not bool(window.any())
            progress(len(window) * row_bytes)
        if bad:
            problems.append(f"{tensor} in {path.name} has {bad:,} values that are NaN or infinite")
        elif zero and value.numel():
            problems.append(f"{tensor} in {path.name} is all zero")
    if problems:
        return Finding(name, "fail", some(problems))
    what = " weights and scales" if checkpoint.is_quantized else ""
    return Finding(name, "pass", f"all {total:,}{what} are finite")


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
        return Finding(name, "skip", "no ids are published for this vocabulary")
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
            name, "skip", f"it is {args.rope_theta:,.0f}; no member of the family has these shapes"
        )
    allowed = (1e6, 1e4) if member.name == "70B" else (1e6,)
    if args.rope_theta in allowed:
        return Finding(name, "pass", f"{args.rope_theta:,.0f}, as Code Llama {member.name} was trained")
    return Finding(
        name,
        "fail",
        f"it is {args.rope_theta:,.0f}, but Code Llama {member.name} was trained with 1,000,000: with another value"
        f" its answers fall apart after a few tokens. Correct rope_theta in {checkpoint.config_name}; or this is"
        f" Llama 2 {member.name}, which has the same shapes and 10,000",
    )
