"""A local server of tiny fake checkpoints, which fails in the ways that the real ones do.

It knows nothing of download.sh: a test puts faults on paths, runs the script, and reads what was asked for.
Every request without the right query is answered 403, as a signed URL's would be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import random
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

QUERY = "Policy=eyJTdGF0ZW1lbnQi~_-secret&Signature=s3cr3t~x&Key-Pair-Id=K1"
# Longer than any test waits for anything; shorter than for ever, where a test has failed.
_HELD_SECONDS = 300
SHARDS = {"7b": 1, "13b": 2, "34b": 4, "70b": 8}


def checkpoint(model: str, size: int = 200_000) -> dict[str, bytes]:
    """The files of CodeLlama-`model` by their paths, the shards zip files of about `size` bytes."""
    folder = f"CodeLlama-{model}"
    noise = random.Random(model)
    files = {
        "params.json": b'{"dim": 64, "n_layers": 1}\n',
        "tokenizer.model": b"\n\x0e" + noise.randbytes(3000),
    }
    for shard in range(SHARDS[model.split("-")[0]]):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("consolidated/data.pkl", noise.randbytes(size))
        files[f"consolidated.{shard:02d}.pth"] = packed.getvalue()
    lines = [f"{hashlib.md5(content).hexdigest()}  {name}\n" for name, content in files.items()]
    files["checklist.chk"] = "".join(lines).encode()
    return {f"{folder}/{name}": content for name, content in files.items()}


@dataclass
class Fault:
    """What goes wrong with a path, for the next `times` GET requests of it."""

    times: int = 1_000_000
    status: int | None = None  # answered in the place of the file
    body: bytes | None = None  # sent with 200 in the place of the file, whatever range is asked for
    cut: int | None = None  # bytes of the answer after which the connection breaks
    hold: int | None = None  # bytes of the answer after which it waits for `go`
    go: threading.Event = field(default_factory=threading.Event)
    ranges: bool = True  # whether a Range is heeded
    tells_size: bool = True  # whether HEAD and GET carry a Content-Length
    kind: str | None = None  # the Content-Type in the place of the fitting one
    location: str | None = None  # where a status of 3xx leads to
    length: str | None = None  # the Content-Length that HEAD tells
    surplus: int = 0  # bytes behind the file, sent by GET without a Content-Length
    drip: float = 0.0  # seconds between the bytes of an answer, and of the headers that HEAD gets


@dataclass
class Request:
    """One request as it came, and how many bytes of the content went out."""

    method: str
    path: str
    range: str | None
    sent: int = 0


@dataclass
class Server:
    """The files, the faults, and what was asked for so far."""

    port: int
    files: dict[str, bytes]
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    query: str = QUERY

    @property
    def host(self) -> str:
        """What CODELLAMA_HOST is set to."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The signed URL."""
        return f"{self.host}/*?{self.query}"

    def gets(self, suffix: str = ".pth") -> list[Request]:
        """The GET requests of paths that end so."""
        return [one for one in self.requests if one.method == "GET" and one.path.endswith(suffix)]

    def sent(self, suffix: str = ".pth") -> int:
        """Bytes of content sent for paths that end so."""
        return sum(one.sent for one in self.gets(suffix))


class _Handler(BaseHTTPRequestHandler):
    state: Server
    protocol_version = "HTTP/1.0"  # a connection for each answer, which ends with it

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_GET(self) -> None:
        self._answer("GET")

    def _answer(self, method: str) -> None:
        path, _, query = self.path.lstrip("/").partition("?")
        request = Request(method, path, self.headers.get("Range"))
        self.state.requests.append(request)
        fault = self.state.faults.get(path, Fault())
        if method == "GET" and path in self.state.faults:
            fault.times -= 1
            if fault.times < 0:
                fault = Fault()
        if query != self.state.query or (fault.status and method == "GET"):
            return self._send(request, fault.status or 403, b"<html>Denied</html>", "text/html", fault)
        if path not in self.state.files:
            return self._send(request, 404, b"<html>Not found</html>", "text/html", fault)
        content = self.state.files[path]
        if fault.body is not None and method == "GET":
            kind = "text/html" if fault.body.lstrip().startswith(b"<") else "binary/octet-stream"
            return self._send(request, 200, fault.body, kind, fault)
        start = re.fullmatch(r"bytes=(\d+)-", request.range or "")
        if start is None or not fault.ranges:
            return self._send(request, 200, content, "binary/octet-stream", fault)
        first = int(start[1])
        if first >= len(content):
            return self._send(request, 416, b"", "text/plain", fault, f"bytes */{len(content)}")
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self._send(request, 206, content[first:], "binary/octet-stream", fault, span)

    def _send(
        self, request: Request, status: int, body: bytes, kind: str, fault: Fault, span: str | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", fault.kind or kind)
        if fault.location:
            self.send_header("Location", fault.location)
        head = request.method == "HEAD"
        if fault.tells_size and (head or not fault.surplus):
            self.send_header("Content-Length", (fault.length if head else None) or str(len(body)))
        if span:
            self.send_header("Content-Range", span)
        with contextlib.suppress(OSError):
            if fault.drip:
                self.flush_headers()
                return self._drip(b"X-Drip: " if head else b"\r\n" + body, fault)
            self.end_headers()
            if head:
                return
            end = len(body) if fault.cut is None else min(fault.cut, len(body))
            middle = end if fault.hold is None else min(fault.hold, end)
            for start, stop in ((0, middle), (middle, end)):
                if start == fault.hold:
                    fault.go.wait(_HELD_SECONDS)
                self.wfile.write(body[start:stop])
                if status < 300:
                    request.sent += stop - start
            for _ in range(0, fault.surplus, len(body)):
                self.wfile.write(body)
                request.sent += len(body)

    def _drip(self, content: bytes, fault: Fault) -> None:
        for byte in itertools.chain(content, itertools.repeat(ord("x"))):
            self.wfile.write(bytes([byte]))
            if fault.go.wait(fault.drip):
                return


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Server]:
    """A server of `files` on a free port of this machine, until the block ends."""
    state = Server(0, files)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        state.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            for fault in state.faults.values():
                fault.go.set()
            http.shutdown()
            thread.join()
