"""Runs download.sh against a local server, and looks at what it left on disk and in the process table."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
from download_server import QUERY, Server

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "download.sh"
FETCHERS = [tool for tool in ("curl", "wget") if shutil.which(tool)]
SECRETS = [part.partition("=")[2] for part in QUERY.split("&")][:2]
WEIGHTS = "CodeLlama-7b/consolidated.00.pth"
# Seconds. Guards against hangs only; a test that needs something sooner says so.
LIMIT = 120.0
# Bytes after which the server holds a file back, for tests that need a transfer in progress.
HELD = 70_000

needs_tools = pytest.mark.skipif(
    not (FETCHERS and shutil.which("bash")), reason="download.sh needs bash, and curl or wget"
)


class Script:
    """download.sh with a folder, a server and a fetcher."""

    def __init__(self, server: Server, folder: Path, fetcher: str) -> None:
        self.server, self.folder, self.fetcher = server, folder, fetcher

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a run, without what the developer's own has for download.sh, proxies or bash."""
        foreign = ("codellama_", "http_proxy", "https_proxy", "all_proxy", "bash_env", "shellopts")
        env = {key: value for key, value in os.environ.items() if not key.lower().startswith(foreign)}
        own = {
            "CODELLAMA_HOST": self.server.host,
            "CODELLAMA_FETCHER": self.fetcher,
            "CODELLAMA_WAIT": "0.05",
        }
        return {**env, **own, "LC_ALL": "C", **(extra or {})}

    def start(self, *options: str, env: Mapping[str, str] | None = None, url: str | None = None):
        """Start a run with `--url` and `--dir`, unless `env` or `options` give them."""
        given = ["--url", self.server.url if url is None else url]
        if env and "CODELLAMA_URL" in env:
            given = []
        where = [] if "--dir" in options else ["--dir", str(self.folder)]
        return subprocess.Popen(
            ["bash", str(SCRIPT), *given, *where, *options],
            env=self.environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options: str, env: Mapping[str, str] | None = None, url: str | None = None):
        """Run to the end. Whatever the outcome, the URL's query is neither printed nor written."""
        process = self.start(*options, env=env, url=url)
        try:
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert not [secret for secret in SECRETS if secret in out + err]
        assert not holding(self.folder, *SECRETS)
        return subprocess.CompletedProcess(options, process.returncode, out, err)

    def complete(self, model: str = "7b") -> None:
        """Every file of the model equals the server's, byte for byte, and nothing else is left."""
        prefix = f"CodeLlama-{model}/"
        wanted = {path: content for path, content in self.server.files.items() if path.startswith(prefix)}
        for path, content in wanted.items():
            assert (self.folder / path).read_bytes() == content, path
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        assert {path for path in found if path.startswith(prefix)} == set(wanted)
        assert not list(self.folder.glob(".download*"))

    def until_held(self) -> None:
        """Wait until the weights are on disk up to where the server holds back, less what curl still buffers."""
        part = self.folder / (WEIGHTS + ".part")
        until(lambda: part.exists() and part.stat().st_size > HELD - 8192)

    def part(self, size: int, path: str = WEIGHTS) -> Path:
        """Write a .part with the first `size` bytes of a file, as an interrupted download leaves it."""
        part = self.folder / (path + ".part")
        part.parent.mkdir(parents=True)
        part.write_bytes(self.server.files[path][:size])
        return part


def holding(folder: Path, *secrets: str) -> list[Path]:
    """Files below the folder that contain one of the secrets. Those that vanish meanwhile do not count."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path.is_file() else b""
            if any(secret.encode() in content for secret in secrets):
                found.append(path)
    return found


def until(condition: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.02)


def transfers(server: Server) -> list[psutil.Process]:
    """Every curl and wget of this machine that has a connection to the server."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("curl", "wget") and process.status() != psutil.STATUS_ZOMBIE:
                joined = process.net_connections()
                if any(one.raddr and one.raddr.port == server.port for one in joined):
                    found.append(process)
    return found


def shells_of(pid: int) -> list[psutil.Process]:
    """The script's process and the shells it forked."""
    found = []
    with contextlib.suppress(psutil.Error):
        script = psutil.Process(pid)
        for process in (script, *script.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                if process.name() == "bash":
                    found.append(process)
    return found


def fake_df(folder: Path, kilobytes: int) -> dict[str, str]:
    """A PATH whose df reports this much free space."""
    folder.joinpath("bin").mkdir(exist_ok=True)
    df = folder / "bin" / "df"
    df.write_text(f"#!/bin/sh\necho Filesystem\necho 'disk 9 9 {kilobytes} 9% /'\n")
    df.chmod(0o755)
    return {"PATH": f"{df.parent}{os.pathsep}{os.environ['PATH']}"}


def wrong(server: Server, path: str = WEIGHTS) -> bytes:
    """The file's content with one bit of its last byte flipped."""
    content = server.files[path]
    return content[:-1] + bytes([content[-1] ^ 1])
