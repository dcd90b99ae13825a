"""The fuzzers of tests/fuzz hold on a few inputs of each kind, and their runner notices what must not happen."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


def run(*options: object) -> tuple[int, str]:
    command = [sys.executable, str(FUZZ / "run.py"), *map(str, options)]
    # The time is a guard against a hang of the runner itself.
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


def row(output: str, name: str) -> list[int]:
    """inputs, accepted, refused, tracebacks, hangs, over memory, crashes of a target."""
    found = re.search(rf"^{name} +(\d.*)", output, re.MULTILINE)
    assert found is not None, output
    return [int(cell.replace(",", "")) for cell in found[1].split()[:7]]


def test_damaged_files_are_refused_or_read_right() -> None:
    code, output = run("--number", 80, "--jobs", 1, "--seed", "suite")
    assert code == 0, output
    for path in FUZZ.glob("fuzz_*.py"):
        inputs, accepted, refused, *bad = row(output, path.stem.removeprefix("fuzz_"))
        assert inputs == accepted + refused == 80
        # A target that refuses all, or accepts all, damages too much or too little to find anything.
        assert accepted >= 3
        assert refused >= 10
        assert bad == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "option", ["--number=0", "--number=-3", "--jobs=0", "--input=-1", "--memory=0", "--seconds=0"]
)
def test_a_run_of_nothing_is_no_success(option: str) -> None:
    code, output = run(option)
    assert code == 2
    assert option.partition("=")[0] in output


# A reader that does with an input what KINDS says of it.
BROKEN = """
import os, time
from llama.errors import ConfigError


class Broken:
    name = "broken"

    def prepare(self, folder):
        self.sound = (folder / "sound")
        self.sound.write_text("sound")

    def mutate(self, rng, folder):
        (folder / "input").write_text(str(rng.random()))
        return folder / "input"

    def read(self, path):
        assert self.sound.read_text() == "sound"
        kind = KINDS.get(path.read_text(), "accepted")
        if kind == "hang":
            time.sleep(1000)
        elif kind == "crash":
            os.kill(os.getpid(), 11)
        elif kind == "memory":
            bytearray(90 << 20)
            kind = "accepted"
        elif kind == "endless":
            bytearray(8 << 30)
        elif kind == "traceback":
            raise KeyError("x")
        elif kind == "oracle":
            assert False
        elif kind == "empty":
            raise ConfigError("")
        elif kind == "refused":
            raise ConfigError("x is 1; it must be 2")
        return kind


TARGET = Broken()
"""


def test_the_runner_notices_and_names_what_must_not_happen(tmp_path: Path) -> None:
    def drawn(number: int) -> str:
        return str(random.Random(f"7/broken/{number}").random())

    kinds = [
        "accepted",
        "hang",
        "refused",
        "crash",
        "memory",
        "traceback",
        "oracle",
        "empty",
        "endless",
        "odd",
    ]
    by_input = {drawn(number): kind for number, kind in enumerate(kinds)}
    (tmp_path / "fuzz_broken.py").write_text(f"KINDS = {by_input!r}\n{BROKEN}")
    options = ("--targets", tmp_path, "--seed", 7, "--jobs", 1, "--seconds", 3, "--memory", 64)
    code, output = run("--number", 11, *options)
    assert code == 1
    assert row(output, "broken") == [11, 2, 1, 4, 1, 2, 1], output
    assert "hangs: repeat with --only broken --seed 7 --input 1\n" in output
    assert "crashes: repeat with --only broken --seed 7 --input 3\nSIGSEGV" in output
    # A target that cannot begin ends the run, instead of failing at every input.
    (tmp_path / "fuzz_never.py").write_text("import nowhere_to_be_found")
    code, output = run("--only", "never", *options)
    assert code == 1
    assert "never cannot be prepared" in output
    assert "nowhere_to_be_found" in output
    (tmp_path / "fuzz_never.py").unlink()
    # Alone it is the same input.
    code, output = run("--input", 5, *options)
    assert code == 1
    assert row(output, "broken") == [1, 0, 0, 1, 0, 0, 0]
    code, output = run("--input", 2, *options)
    assert code == 0
    assert row(output, "broken") == [1, 0, 1, 0, 0, 0, 0]
