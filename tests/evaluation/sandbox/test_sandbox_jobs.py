"""Jobs of several commands and files, and many of them at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandboxes import assert_holds, open_descriptors, passes, python, run

from llama.errors import EvaluationError
from llama.evaluation.sandbox import Command, Ended, Job, Limits, Sandbox, interpreter

pytestmark = pytest.mark.slow


def inline(source: str, **limits: object) -> Command:
    return Command((str(interpreter()), "-I", "-S", "-B", "-c", source), Limits(**limits))  # type: ignore[arg-type]


def test_commands_run_one_after_the_other_in_one_folder(sandbox: Sandbox) -> None:
    first = "import os; print(os.listdir()); open('made', 'w').write('by the first')"
    second = "import os; print(open('made').read(), open('sub/given').read()); os.write(3, b'end')"
    outcome = sandbox.run(Job({"sub/given": b"by the caller"}, [inline(first), inline(second)]))
    assert (outcome.ended, outcome.command, outcome.exit_code) == (Ended.EXITED, 1, 0)
    assert (outcome.stdout, outcome.token) == (b"by the first by the caller\n", b"end")


def test_the_first_command_that_fails_is_the_last(sandbox: Sandbox) -> None:
    commands = [
        inline("pass"),
        inline("import os, sys; os.write(3, b'x'); sys.exit('why')"),
        inline("print('never')"),
    ]
    outcome = sandbox.run(Job({}, commands))
    assert (outcome.command, outcome.exit_code, outcome.stdout, outcome.stderr) == (1, 1, b"", b"why\n")


def test_a_command_that_is_ended_is_the_last(sandbox: Sandbox) -> None:
    outcome = sandbox.run(Job({}, [inline("while True: pass", cpu_seconds=0.4), inline("pass")]))
    assert (outcome.command, outcome.ended) == (0, Ended.CPU)


def test_no_process_of_a_command_meets_the_next(sandbox: Sandbox) -> None:
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)"
    alone = "import os; assert [n for n in os.listdir('/proc') if n.isdecimal()] == ['1', str(os.getpid())]"
    outcome = sandbox.run(Job({}, [inline(daemon), inline(alone)]))
    assert (outcome.command, outcome.exit_code) == (1, 0), outcome


def test_each_command_has_its_own_limits(sandbox: Sandbox) -> None:
    allocate = "x = bytearray(100 << 20)"
    outcome = sandbox.run(Job({}, [inline(allocate), inline(allocate, address_space_bytes=64 << 20)]))
    assert (outcome.command, outcome.exit_code) == (1, 1)


@pytest.mark.parametrize(
    ("source", "code"), [("import sys; sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_exit_codes_are_those_of_a_shell(sandbox: Sandbox, source: str, code: int) -> None:
    assert sandbox.run(Job({}, [inline(source)])).exit_code == code


@pytest.mark.parametrize(
    "argv", [("no-such-program",), ("./not-executable",), ("nul\0inside",), ("lone\ud800surrogate",)]
)
def test_a_command_that_cannot_start_is_told(sandbox: Sandbox, argv: tuple[str, ...]) -> None:
    outcome = sandbox.run(Job({"not-executable": b"#!/bin/sh\n"}, [Command(argv)]))
    assert (outcome.ended, outcome.exit_code) == (Ended.EXITED, 127)
    assert b"cannot be started" in outcome.stderr


def test_signals_do_in_programs_what_they_do_by_default(sandbox: Sandbox) -> None:
    """Python ignores SIGPIPE, and what it starts would inherit that."""
    outcome = sandbox.run(Job({}, [Command(("bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}"))]))
    assert outcome.stdout == b"y\n141\n"


def test_the_environment_of_a_command_is_given(sandbox: Sandbox) -> None:
    command = Command(("/bin/sh", "-c", "echo $GIVEN $LANG"), environment={"GIVEN": "this", "LANG": "C"})
    assert sandbox.run(Job({}, [command])).stdout == b"this C\n"


def test_what_is_visible_can_be_read_and_not_written(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "file").write_text("content")
    (tmp_path / "link").symlink_to("shown/file")
    (tmp_path / "beside").write_text("hidden")
    tmp_path.chmod(0o755)
    source = f"""
import os
assert open({str(tmp_path / "shown" / "file")!r}).read() == "content"
assert open({str(tmp_path / "link")!r}).read() == "content"
assert not os.path.exists({str(tmp_path / "beside")!r})
for place in ({str(tmp_path / "shown" / "file")!r}, {str(tmp_path / "shown" / "new")!r}):
    try: open(place, "w")
    except OSError: pass
    else: raise AssertionError(place)
"""
    outcome = sandbox.run(Job({}, [inline(source)], visible=(tmp_path / "shown", tmp_path / "link")))
    assert outcome.exit_code == 0, outcome
    assert (tmp_path / "shown" / "file").read_text() == "content"


@pytest.mark.parametrize("path", ["/", "/no/such/place"])
def test_what_cannot_be_shown_is_an_error(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(EvaluationError, match="cannot show"):
        sandbox.run(Job({}, [inline("pass")], visible=(Path(path),)))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "./a", "a/", "nul\0"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(EvaluationError, match="cannot be called"):
        Job({name: b""}, [Command(("true",))])


def test_a_file_is_no_folder_of_another(sandbox: Sandbox) -> None:
    with pytest.raises(EvaluationError, match="cannot be called"):
        Job({"a": b"", "a/b/c": b""}, [Command(("true",))])
    assert_holds(sandbox, "import os\nassert os.getcwd() == '/tmp/job'")


def test_a_job_without_a_command_is_refused() -> None:
    with pytest.raises(EvaluationError, match="at least one command"):
        Job({}, [])


def test_threads_run_jobs_at_the_same_time(sandbox: Sandbox) -> None:
    def job(number: int) -> bytes:
        source = f"import os\nopen('file', 'x').write('{number}')\nprint(open('file').read())"
        outcome = run(sandbox, source)
        assert passes(outcome), outcome
        return outcome.stdout

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(job, range(12))) == [b"%d\n" % number for number in range(12)]


def test_no_file_descriptor_is_left(sandbox: Sandbox) -> None:
    def jobs() -> None:
        run(sandbox, "pass")
        run(sandbox, "import time\ntime.sleep(1000)", wall_seconds=0.1)
        with pytest.raises(EvaluationError):
            sandbox.run(Job({}, [Command(python("x"))], visible=(Path("/no/such/place"),)))

    jobs()
    before = open_descriptors()
    for _ in range(3):
        jobs()
    assert open_descriptors() == before
