"""Kernels that were not compiled: the package installs and runs without them, and says once why."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama import Llama, loading
from llama.kernels import native

ROOT = Path(__file__).parents[2]
NOTE = "_cpu.failed.txt"
where_they_are_compiled = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"),
    reason="kernels are compiled for Linux on x86-64 only",
)


@where_they_are_compiled
def test_what_this_machine_could_compile_is_there() -> None:
    """csrc/ranks.c runs on any CPU; the fixture `compiled` asks for the kernels."""
    assert native.ranks_library() is not None, native.why_missing()


@where_they_are_compiled
def test_a_compiler_that_fails_leaves_its_reason(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "llama" / "kernels" / "csrc", tmp_path / "llama" / "kernels" / "csrc")
    for package in ("llama", "llama/kernels"):
        (tmp_path / package / "__init__.py").touch()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-lib", "lib"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "CC": "no-such-compiler"},
        capture_output=True,
        text=True,
        timeout=120,  # a guard against a hang
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Beside the source for an install in place, and where a wheel is packed from.
    for folder in ("llama/kernels", "lib/llama/kernels"):
        assert "no-such-compiler" in (tmp_path / folder / NOTE).read_text()
    assert not list(tmp_path.rglob("*.so"))


def test_the_reason_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / NOTE
    monkeypatch.setattr(native, "_NOTE", note)
    monkeypatch.setattr(native, "_could_run", lambda: True)
    monkeypatch.setattr(native, "_loaded", lambda: object())
    assert native.why_missing() is None
    monkeypatch.setattr(native, "_loaded", lambda: None)
    assert native.why_missing() == "nothing was compiled when the package was installed"
    note.write_text("command 'cc' failed: No such file or directory\n")
    assert native.why_missing() == "command 'cc' failed: No such file or directory"
    (tmp_path / f"_cpu{native.EXTENSION_SUFFIXES[0]}").touch()
    assert native.why_missing() == "what was compiled is for another version of the source, or of torch"
    monkeypatch.setattr(native, "_could_run", lambda: False)
    assert native.why_missing() is None


def test_it_is_said_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "why_missing", lambda: "the compiler's reason")
    loading._log_missing_kernels.cache_clear()
    for _ in range(2):
        Llama.build(tiny_checkpoint, None, 64, 1, device="cpu")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("the compiler's reason") == 1
    assert len(err.splitlines()) == 3
    loading._log_missing_kernels.cache_clear()
