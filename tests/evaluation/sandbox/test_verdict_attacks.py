"""Programs that want a pass without passing, or no verdict at all. Each gets one, in time."""

from __future__ import annotations

import pytest
from sandboxes import BEHIND_TESTS, TOKEN, passes, run

from llama.evaluation.sandbox import Ended, Sandbox

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import atexit, os\natexit.register(os._exit, 0)\nraise AssertionError",
        "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\nraise AssertionError",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.fork() and os._exit(0)\nos.close(3)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os\nos.abort()",
        "import os\nos.close(3)",
        "import os\nos.dup2(os.open('/dev/null', os.O_WRONLY), 3)",
        "assert False",
        "this is no Python",
    ],
)
def test_an_end_in_the_middle_is_no_pass(sandbox: Sandbox, source: str) -> None:
    outcome = run(sandbox, source)
    assert outcome.ended is Ended.EXITED
    assert not passes(outcome)


def test_a_program_that_ends_behind_its_tests_passes(sandbox: Sandbox) -> None:
    assert passes(run(sandbox, "assert 1 + 1 == 2"))


@pytest.mark.parametrize(
    "close", ["os.close(1)", "os.close(2)", "os.close(1); os.close(2)", "sys.stdout.close()"]
)
def test_closed_output_does_not_hang(sandbox: Sandbox, close: str) -> None:
    outcome = run(sandbox, f"import os, sys, time\n{close}\ntime.sleep(0.1)")
    assert (outcome.ended, outcome.token) == (Ended.EXITED, TOKEN)


def test_closed_output_does_not_hide_an_endless_program(sandbox: Sandbox) -> None:
    source = "import os, time\nfor number in range(4): os.close(number)\ntime.sleep(1000)"
    assert run(sandbox, source, wall_seconds=0.5).ended is Ended.WALL


@pytest.mark.parametrize(
    "read", ["input()", "import os\nassert os.read(0, 1)", "import sys\nassert sys.stdin.read()"]
)
def test_reading_stdin_does_not_hang(sandbox: Sandbox, read: str) -> None:
    outcome = run(sandbox, read)
    assert (outcome.ended, outcome.exit_code, outcome.token) == (Ended.EXITED, 1, b"")


@pytest.mark.parametrize(
    "source",
    [
        b"print('a\0b')",
        b"\xff\xfe\xed\xa0\x80",
        "x = '\ud800'".encode("utf-8", "surrogatepass"),
        b"",
    ],
)
def test_any_bytes_get_a_verdict(sandbox: Sandbox, source: bytes) -> None:
    outcome = run(sandbox, source)
    assert outcome.ended is Ended.EXITED
    assert not passes(outcome)


def test_output_that_is_no_text_is_kept_as_it_is(sandbox: Sandbox) -> None:
    written = bytes(range(256))
    source = f"import os, sys\nos.write(1, {written!r})\nos.write(2, {written!r})"
    outcome = run(sandbox, source)
    assert passes(outcome)
    assert (outcome.stdout, outcome.stderr) == (written, written)


def test_a_megabyte_of_text_gets_a_verdict(sandbox: Sandbox) -> None:
    source = "# " + "\U0001f999" * 250_000 + "\ntext = '" + "x" * 1_000_000 + "'\nassert len(text) == 10 ** 6"
    assert passes(run(sandbox, source))


def test_files_that_are_too_large_from_the_beginning_get_a_verdict(sandbox: Sandbox) -> None:
    outcome = run(sandbox, b"#" * (17 << 20) + BEHIND_TESTS.encode())
    assert (outcome.ended, outcome.token) == (Ended.FILES, b"")
