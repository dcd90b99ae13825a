"""Every skip is counted with its reason, and one that the machine gives no reason for fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import skips

SUPPORT = Path(skips.__file__).parent
TESTS = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_lacking(number):
    pytest.skip("no such thing here")

def test_sound(): ...
"""


WRONG = """
def test_wrong(): pytest.skip("no thing that is here")

def test_unknown(): pytest.skip("not on the list")
"""
ABSENT = "import pytest\npytest.importorskip('nothing_of_this_name')\ndef test_it(): ...\n"


def run(folder: Path, workers: str, **files: str) -> tuple[int, list[str]]:
    """The exit code of pytest in `folder` with the plugin alone, and the lines it printed."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {SUPPORT}\n")
    (folder / "conftest.py").write_text(
        "import skips\n"
        "skips.LACKING['no such thing here'] = lambda: True\n"
        "skips.LACKING['no thing that is here'] = lambda: False\n"
        "def pytest_configure(config):\n"
        "    config.pluginmanager.register(skips.Skips())\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", "-n", workers]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # each takes its time to import
        capture_output=True,
        text=True,
        timeout=120,  # a guard against a hang
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_skips_are_listed_and_allowed_ones_fail_nothing(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "2", test_it=TESTS)
    assert code == 0
    assert "    3  no such thing here" in lines


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_skip_without_a_lack_fails_the_run(tmp_path: Path, workers: str) -> None:
    code, lines = run(tmp_path, workers, test_it=TESTS + WRONG)
    assert code == 1
    assert "test_it.py::test_wrong: no thing that is here" in lines
    assert "test_it.py::test_unknown: not on the list" in lines
    assert "    3  no such thing here" in lines


def test_a_file_that_skips_itself_fails_the_run(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "2", test_it=TESTS, test_absent=ABSENT)
    assert code != 0
    assert any("test_absent.py skips itself" in line for line in lines)


def test_kernels_that_could_be_built_here_are_no_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(skips, "_has_levels", lambda: True)
    for name, code in (("works", 0), ("fails", 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CC", f"{tmp_path}/works -O3")
    assert not skips.allowed("no C compiler")
    for command in (f"{tmp_path}/fails", "no-such-compiler -O3"):
        monkeypatch.setenv("CC", command)
        assert skips.allowed("no C compiler")
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "flags : avx2 fma f16c bmi1 bmi2 abm movbe\n")
    assert skips.allowed("this CPU does not run x86-64-v4")
    assert not skips.allowed("this CPU does not run x86-64-v3")
