"""`codellama serve` as a program: ready when warm, SIGTERM drains, a rank that dies is told, TLS.

The first server is the command itself; the others are forks, each two seconds of processor time cheaper.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
from ranks import ALONE, HANGS, ROOT, ForkedLaunch, Launch

pytestmark = pytest.mark.slow


def address_of(server: Launch) -> str:
    """Where it serves, once it does."""
    server.wait_for(lambda: "Serving on " in server.errors())
    found = re.search(r"Serving on (\S+)", server.errors())
    assert found is not None
    return found[1]


def other_rank(server: Launch, address: str) -> int:
    """The process of the rank that does not listen there. Beside the ranks there is the launcher."""
    port = int(address.rpartition(":")[2])
    ranks = [each for each in server.alive() if each.pid != server.process.pid]
    (pid,) = [
        each.pid for each in ranks if port not in {of.laddr.port for of in each.net_connections("tcp4")}
    ]
    return pid


@contextlib.contextmanager
def program(*flags: object, ranks: int = 1, kind: type[Launch] = ForkedLaunch) -> Iterator[Launch]:
    """A server in a process of its own, or in two."""
    torchrun = (*ALONE, "--nproc_per_node", ranks) if ranks > 1 else ()
    launcher = (*torchrun, "-m", "llama", "serve")
    settings = [
        "--port",
        0,
        "--max-seq-len",
        12_000,
        "--max-batch-size",
        4,
        "--cache-memory",
        "64MiB",
        *flags,
    ]
    launch = kind(ROOT / "CodeLlama-tiny", settings, launcher, {"OMP_NUM_THREADS": "1"})
    try:
        yield launch
    finally:
        launch.kill()


def body(tokens: int) -> dict[str, object]:
    return {"prompt": "def fib(", "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}


def events(answer: httpx.Response) -> Iterator[str]:
    return (line[6:] for line in answer.iter_lines() if line.startswith("data: "))


def test_sigterm_lets_running_answers_end_and_takes_no_new_ones() -> None:
    with program("--drain-seconds", 100, "--dtype", "float32", kind=Launch) as server:
        with httpx.Client(base_url=address_of(server), timeout=HANGS) as client:
            assert client.get("/health").json() == {"status": "ok"}
            with client.stream("POST", "/v1/completions", json=body(1500)) as answer:
                lines = events(answer)
                next(lines)
                server.process.send_signal(signal.SIGTERM)
                end = time.monotonic() + HANGS
                while client.get("/health").status_code != 503:
                    assert time.monotonic() < end
                refused = client.post("/v1/completions", json=body(1))
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "unavailable"
                assert "retry-after" in refused.headers
                *_, last, done = lines
                assert done == "[DONE]"
                assert json.loads(last)["choices"][0]["finish_reason"] == "length"
        finished = server.finish()
        assert finished.code == 0
        assert "Traceback" not in finished.stderr
        assert "def fib(" not in finished.stderr, "no prompt is in the log"


def test_answers_that_outlast_the_drain_are_ended() -> None:
    with program("--drain-seconds", 0.2) as server:
        with (
            httpx.Client(base_url=address_of(server), timeout=HANGS) as client,
            client.stream("POST", "/v1/completions", json=body(11_000)) as answer,
        ):
            lines = events(answer)
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last = lines  # the stream ends, and in order
            assert last
        assert server.finish().code == 0


def test_ctrl_c_ends_running_answers_and_half_sent_requests_in_order() -> None:
    with program("--drain-seconds", 100) as server:
        address = httpx.URL(address_of(server))
        with (
            socket.create_connection((address.host, address.port), HANGS) as half,
            httpx.Client(base_url=address, timeout=HANGS) as client,
            client.stream("POST", "/v1/completions", json=body(11_000)) as answer,
        ):
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            lines = events(answer)
            next(lines)
            server.interrupt()
            *_, last = lines
            assert json.loads(last)["error"]["code"] == "incomplete"
            assert half.recv(12) == b"HTTP/1.1 503"
        finished = server.finish()
        assert finished.code == 130
        assert "Traceback" not in finished.stderr


def test_a_rank_that_is_killed_ends_streams_with_an_error_and_the_program_with_a_code() -> None:
    with program(ranks=2) as server:
        address = address_of(server)
        with (
            httpx.Client(base_url=address, timeout=HANGS) as client,
            client.stream("POST", "/v1/completions", json=body(11_000)) as answer,
        ):
            lines = events(answer)
            for _ in range(5):
                next(lines)
            os.kill(other_rank(server, address), signal.SIGKILL)
            *_, last = lines
            error = json.loads(last)["error"]
            assert error["code"] == "internal_error"
            assert "rank 1" in error["message"]
        finished = server.finish()
        assert finished.code != 0
        assert "RankError" in finished.stderr or "rank 1 is gone" in finished.stderr


def test_tls_and_a_port_that_is_taken(tmp_path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not on this machine")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += [
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with program("--ssl-certfile", certificate, "--ssl-keyfile", key) as server:
        address = address_of(server)
        assert address.startswith("https://")
        answer = httpx.get(
            f"{address}/health", verify=ssl.create_default_context(cafile=certificate), timeout=HANGS
        )
        assert answer.json() == {"status": "ok"}
        with program("--port", address.rpartition(":")[2]) as second:
            finished = second.finish()
        assert finished.code == 1
        assert "cannot listen on 127.0.0.1 port" in finished.stderr
        assert "Loaded" not in finished.stderr, "before the model was loaded"
        server.interrupt()
        assert server.finish().code == 130
