"""OpenAI's batch files: requests that are read, and answers that are appended so that a run can go on.

A line of IN is `{"custom_id", "method", "url", "body"}`; a line of OUT `{"id", "custom_id", "response", "error"}`
with the answer's status_code, request_id and body, in the order of IN. The id of an answer is made from its
request's place and bytes: that is how a later run sees which requests are done, and that IN is the same.
Never imports torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ConfigError
from ..printable import shown

__all__ = ["ROUTES", "AnswerFile", "BatchRequest", "Json", "count_requests", "error_record", "read_requests"]

Json = dict[str, Any]
ROUTES = ("/v1/completions", "/v1/chat/completions")
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True)
class BatchRequest:
    """One line of IN.

    id: of its answer. problem: why it cannot be asked; None if it can.
    """

    id: str
    custom_id: str | None
    url: str
    body: Json
    problem: str | None = None


def count_requests(path: Path) -> int:
    """Lines that are not blank. Raises OSError."""
    with path.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)


def read_requests(path: Path) -> Iterator[BatchRequest]:
    """The requests of a file, one at a time; a bad one has its `problem`. Blank lines do not count.

    Raises:
        OSError: the file cannot be read.
    """
    seen: dict[str, int] = {}
    with path.open("rb") as lines:
        place = 0
        for number, line in enumerate(lines, 1):
            content = line.strip()
            if not content:
                continue
            digest = hashlib.sha256(b"%d:%s" % (place, content)).hexdigest()
            yield _request(f"batch_req_{digest[:32]}", number, content, seen)
            place += 1


def _request(name: str, number: int, content: bytes, seen: dict[str, int]) -> BatchRequest:
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return BatchRequest(
            name, None, "", {}, f"line {number:,} is not JSON: {type(error).__name__}: {error}"
        )
    problem = _problem(found)
    custom_id = found.get("custom_id") if isinstance(found, dict) else None
    if not isinstance(custom_id, str):
        custom_id = None
    elif problem is None:
        first = seen.setdefault(custom_id, number)
        if first != number:
            problem = f"custom_id {shown(custom_id)} is that of line {first:,} too"
    if problem is not None:
        return BatchRequest(name, custom_id, "", {}, f"line {number:,}: {problem}")
    return BatchRequest(name, custom_id, found["url"], found["body"])


def _problem(found: Any) -> str | None:
    if not isinstance(found, dict):
        return f"it is {shown(found)}, not an object with {', '.join(_FIELDS)}"
    for name in _FIELDS:
        if name not in found:
            return f"it has no {name}"
    if unknown := found.keys() - set(_FIELDS):
        return f"it has the unknown field {shown(min(unknown))}"
    if not isinstance(found["custom_id"], str) or not found["custom_id"]:
        return f"custom_id is {shown(found['custom_id'])}; it must be a string that is not empty"
    if found["method"] != "POST":
        return f"method is {shown(found['method'])}; it must be POST"
    if found["url"] not in ROUTES:
        return f"url is {shown(found['url'])}; it must be {' or '.join(ROUTES)}"
    if not isinstance(found["body"], dict):
        return f"body is {shown(found['body'])}; it must be an object"
    if found["body"].get("stream"):
        return "body.stream is set, and a batch has whole answers only"
    return None


def error_record(request: BatchRequest, code: str, message: str) -> Json:
    """The line of OUT for a request that was not answered."""
    return {
        "id": request.id,
        "custom_id": request.custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }


class AnswerFile:
    """OUT, open for appending until the end of a `with`; nobody else's batch may write it meanwhile.

    done: answers that were there already; `read_requests` begins with their requests.
    torn: whether the last line of an earlier run was incomplete; it is dropped.

    Args:
        path: the file; it is made if it is not there.
        source: IN.

    Raises:
        ConfigError: IN is no file, or this one; it has answers to other requests, or another batch writes it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self.done = 0
        self.torn = False
        of_source = source.stat()
        if not stat.S_ISREG(of_source.st_mode):
            raise ConfigError(f"{source} is not a file; requests are read from one, more than once")
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.path.samestat(of_source, os.fstat(self._handle)):
                raise ConfigError(f"{path} is the file of the requests too; name another one for the answers")
            self._begin(source)
        except BaseException:
            os.close(self._handle)
            raise

    def _begin(self, source: Path) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another batch is writing {self.path}; wait for its end") from None
        end = self._check(read_requests(source))
        self.torn = end < os.fstat(self._handle).st_size
        os.ftruncate(self._handle, end)
        os.lseek(self._handle, end, os.SEEK_SET)

    def _check(self, requests: Iterator[BatchRequest]) -> int:
        """Count the answers, and see that each is to its request -> bytes of whole lines."""
        end = 0
        with open(os.dup(self._handle), "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                request = next(requests, None)
                if request is None or _id(line) != request.id:
                    raise ConfigError(
                        f"line {self.done + 1:,} of {self.path} is not the answer to request {self.done + 1:,}: it"
                        " belongs to other requests, or they were changed; name another file for the answers"
                    )
                self.done += 1
                end += len(line)
        return end

    def append(self, record: Json) -> None:
        """Append a line. Raises OSError; a line that was only begun is dropped by the next run."""
        rest = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
        while rest:
            rest = rest[os.write(self._handle, rest) :]

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            os.fsync(self._handle)
        except OSError:  # a pipe or /dev/null; a disk that failed shows when the file is closed
            pass
        finally:
            os.close(self._handle)


def _id(line: bytes) -> object:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found.get("id") if isinstance(found, dict) else None
