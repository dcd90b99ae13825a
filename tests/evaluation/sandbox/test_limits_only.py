"""`limits` is no sandbox: what it holds, and what it does not hold."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxes import assert_holds, passes, python, run

from llama.evaluation.sandbox import Command, Ended, Job, Limits, Sandbox, open_sandbox

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def limits() -> Sandbox:
    return open_sandbox("limits")


@pytest.fixture(autouse=True)
def _nothing_left(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Jobs get folders here, and leave none."""
    folder = tmp_path_factory.mktemp("jobs")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []


def test_time_is_limited(limits: Sandbox) -> None:
    assert run(limits, "while True: pass", cpu_seconds=0.4).ended is Ended.CPU
    assert run(limits, "import time\ntime.sleep(1000)", wall_seconds=0.5).ended is Ended.WALL


def test_a_daemon_ends_with_its_program(limits: Sandbox) -> None:
    daemon = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
"""
    assert_holds(limits, daemon)


def test_memory_is_limited(limits: Sandbox) -> None:
    outcome = run(limits, "x = bytearray(8 << 30)")
    assert (outcome.exit_code, b"MemoryError" in outcome.stderr) == (1, True)
    source = "import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (100 << 20)\ntime.sleep(1000)"
    assert run(limits, source, memory_bytes=256 * MIB).ended is Ended.MEMORY


def test_a_process_too_many_ends_the_job_or_is_refused(limits: Sandbox) -> None:
    """The kernel's limit does not hold root. The watcher sees what lives long enough to be seen, and ends it."""
    source = """
import os, time
try:
    for _ in range(60):
        if os.fork() == 0: time.sleep(1000)
except BlockingIOError: os._exit(3)
time.sleep(1000)
"""
    outcome = limits.run(
        Job({"main.py": source.encode()}, [Command(python("main.py"), Limits(processes=12))])
    )
    assert outcome.ended is Ended.PROCESSES or outcome.exit_code == 3


def test_output_is_limited(limits: Sandbox) -> None:
    source = "import os\nfor _ in range(1 << 14): os.write(1, b'x' * 65536)"
    outcome = run(limits, source)
    assert (outcome.ended, len(outcome.stdout)) == (Ended.FILES, 65536)


def test_a_file_is_limited_but_not_all_of_them(limits: Sandbox) -> None:
    source = """
import errno
with open("large", "wb", buffering=0) as file:
    try: assert file.write(b"x" * (3 << 20)) <= 1 << 20 and file.write(b"x")
    except OSError as error: assert error.errno == errno.EFBIG
    else: raise AssertionError
for i in range(3): open(str(i), "wb").write(b"x" * (1 << 20))
"""
    assert_holds(
        limits, "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + source, file_bytes=MIB
    )


def test_the_environment_is_empty(limits: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "seen")
    assert_holds(limits, "import os\nassert set(os.environ) == {'PATH', 'HOME', 'LANG'}, os.environ")


def test_folders_that_resist_are_removed(limits: Sandbox) -> None:
    """Closed to their owner, and nested more deeply than Python's recursion goes."""
    source = """
import os
os.mkdir("closed"); open("closed/file", "w").close(); os.chmod("closed", 0)
for _ in range(1500):
    os.mkdir("x"); os.chdir("x")
"""
    assert passes(run(limits, source))


def test_it_is_no_shelter(limits: Sandbox, tmp_path: Path) -> None:
    """Files of the user are read and written: the reports and the option's help say that it is none."""
    (tmp_path / "secret").write_text("seen")
    place = str(tmp_path)
    assert_holds(
        limits, f"assert open({place + '/secret'!r}).read() == 'seen'\nopen({place + '/new'!r}, 'w').close()"
    )
    assert (tmp_path / "new").exists()
    assert_holds(
        limits, f"import os\nassert os.getuid() == {os.getuid()} and os.path.exists({sys.executable!r})"
    )
