"""Kernels that were not compiled: the package installs and runs without them, and says once why."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_levels import has_compiler, knows, runs

from llama import ConfigError, Llama, loading
from llama.kernels import compiled
from llama.kernels.levels import BASE, here

ROOT = Path(__file__).parents[2]
NOTES = [f"{name}.failed.txt" for name in (BASE, *(level.library for level in here()))]
where_they_are_compiled = pytest.mark.skipif(
    not here(), reason="kernels are compiled for x86-64 and aarch64 only"
)
with_a_compiler = pytest.mark.skipif(not here() or not has_compiler(), reason="no C compiler")


@with_a_compiler
def test_what_this_machine_could_compile_is_there() -> None:
    """csrc/ranks.c runs on any CPU, and every level that was compiled opens."""
    assert compiled.base() is not None, compiled.why_missing()
    for level in compiled.runnable():
        assert compiled.open_level(level) is not None or not knows(level.name), level.name


@with_a_compiler
def test_the_levels_that_run_are_those_of_this_cpu() -> None:
    assert [level.name for level in compiled.runnable()] == [
        level.name for level in here() if runs(level.name)
    ]


@pytest.mark.parametrize(
    ("system", "machine", "best"),
    [
        ("linux", "x86_64", "x86-64-v4-bf16"),
        ("darwin", "x86_64", "x86-64-v4-bf16"),
        ("linux", "aarch64", "armv8-bf16"),
        ("darwin", "arm64", "armv8-bf16"),
        ("linux", "riscv64", None),
        ("win32", "AMD64", None),
    ],
)
def test_where_kernels_are_compiled(
    system: str, machine: str, best: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the package installs without, and misses nothing."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert next((level.name for level in here()), None) == best
    if best is None:
        assert compiled.why_missing() is None
        assert compiled.runnable() == []


@where_they_are_compiled
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-compiler", "no-such-compiler: No such file or directory"),
        ("{folder}/fails", "{folder}/fails failed with exit status 3 on llama/kernels/csrc/abi.c"),
    ],
)
def test_a_compiler_that_fails_leaves_its_reason(tmp_path: Path, command: str, reason: str) -> None:
    """In one short line, beside the source for an install in place, and where a wheel is packed from."""
    (tmp_path / "fails").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "fails").chmod(0o755)
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "llama" / "kernels" / "csrc", tmp_path / "llama" / "kernels" / "csrc")
    shutil.copy(ROOT / "llama" / "kernels" / "levels.py", tmp_path / "llama" / "kernels")
    for package in ("llama", "llama/kernels"):
        (tmp_path / package / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-lib", "lib"],
        cwd=tmp_path,
        env={**os.environ, "CC": command.format(folder=tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,  # a guard against a hang
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for folder in ("llama/kernels", "lib/llama/kernels"):
        for note in NOTES:
            assert (tmp_path / folder / note).read_text() == reason.format(folder=tmp_path) + "\n"
    assert not list(tmp_path.rglob("*.so"))


@where_they_are_compiled
def test_the_reason_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the library for any CPU, else of the best level that this CPU runs."""
    one, two = here()[:2]
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    monkeypatch.setattr(compiled, "base", lambda: None)
    monkeypatch.setattr(compiled, "best", lambda: None)
    assert compiled.why_missing() == "nothing was compiled when the package was installed"
    (tmp_path / f"{BASE}.failed.txt").write_text("cc: No such file or directory\n")
    assert compiled.why_missing() == "cc: No such file or directory"
    (tmp_path / f"{BASE}{compiled.EXTENSION_SUFFIXES[0]}").touch()
    broken = f"{BASE}{compiled.EXTENSION_SUFFIXES[0]} is broken, or of another version of the package"
    assert compiled.why_missing() == broken

    monkeypatch.setattr(compiled, "base", lambda: object())
    monkeypatch.setattr(compiled, "runnable", lambda: [one, two])
    monkeypatch.setattr(compiled, "best", lambda: one)
    assert compiled.why_missing() is None
    monkeypatch.setattr(compiled, "best", lambda: two)
    assert compiled.why_missing() == f"{one.library} is missing; those of {two.name} are used"
    (tmp_path / f"{one.library}.failed.txt").write_text("unknown option\n")
    assert compiled.why_missing() == f"unknown option; those of {two.name} are used"
    monkeypatch.setattr(compiled, "runnable", lambda: [])
    monkeypatch.setattr(compiled, "best", lambda: None)
    assert compiled.why_missing() is None


@with_a_compiler
def test_a_library_of_another_version_or_a_broken_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compiled._file(BASE)
    assert found is not None
    whole = found.read_bytes()
    broken = (b"", b"\x7fELF", b"no library", whole[:1000], whole[: len(whole) // 2], whole[:-1])
    for i, content in enumerate(broken):
        folder = tmp_path / str(i)  # of its own: the loader knows a path again, whatever is there by then
        folder.mkdir()
        (folder / found.name).write_bytes(content)
        monkeypatch.setattr(compiled, "_FOLDER", folder)
        assert compiled._open(BASE, compiled._BASE) is None
    sound = tmp_path / "sound"
    sound.mkdir()
    shutil.copy(found, sound)
    monkeypatch.setattr(compiled, "_FOLDER", sound)
    assert compiled._open(BASE, compiled._BASE) is not None
    assert compiled._open(BASE, compiled._BASE | {"no_such_function": ("", "")}) is None
    monkeypatch.setattr(compiled, "ABI", compiled.ABI + 1)
    assert compiled._open(BASE, compiled._BASE) is None


@with_a_compiler
def test_no_more_libraries_are_opened_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one can end the process, and `LLAMA_KERNELS=none` is the way out."""
    opened = []
    monkeypatch.setattr(compiled, "open_level", lambda level: opened.append(level.name) or object())
    first, last = compiled.runnable()[0].name, compiled.runnable()[-1].name
    try:
        for wanted, needed in (("none", []), (last, [last]), ("", [first])):
            opened.clear()
            monkeypatch.setenv(compiled.VARIABLE, wanted)
            compiled.best.cache_clear()
            compiled.best()
            assert opened == needed
    finally:
        monkeypatch.undo()
        compiled.best.cache_clear()


@with_a_compiler
def test_a_variable_names_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for wanted in filter(compiled.open_level, compiled.runnable()):
            monkeypatch.setenv(compiled.VARIABLE, wanted.name)
            compiled.best.cache_clear()
            assert compiled.best() == wanted
        monkeypatch.setenv(compiled.VARIABLE, "none")
        compiled.best.cache_clear()
        assert compiled.best() is compiled.why_missing() is None
        monkeypatch.setenv(compiled.VARIABLE, "x86-64-v9")
        compiled.best.cache_clear()
        with pytest.raises(ConfigError, match=r"LLAMA_KERNELS is 'x86-64-v9'; .* can be: .*none$"):
            compiled.best()
    finally:
        monkeypatch.undo()
        compiled.best.cache_clear()


@where_they_are_compiled
def test_the_best_level_that_opens_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = here()[:3]
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "runnable", lambda: list(levels))
    try:
        for absent in range(len(levels) + 1):
            there = levels[absent:]
            monkeypatch.setattr(compiled, "open_level", lambda level, there=there: level in there or None)
            compiled.best.cache_clear()
            assert compiled.best() == next(iter(there), None)
    finally:
        monkeypatch.undo()
        compiled.best.cache_clear()


def test_it_is_said_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "why_missing", lambda: "the compiler's reason")
    loading._log_missing_kernels.cache_clear()
    for _ in range(2):
        Llama.build(tiny_checkpoint, None, 64, 1, device="cpu")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("the compiler's reason") == 1
    assert len(err.splitlines()) == 3
    loading._log_missing_kernels.cache_clear()
