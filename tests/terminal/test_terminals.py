"""Laws of the chat program on a terminal, with the keys that a user presses, on one rank and on two."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranks import HANGS, ROOT

from llama import Llama

ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm",
    "PROMPT_TOOLKIT_NO_CPR": "1",
    "PYTHONPATH": str(ROOT),
}
PROMPT = "enter !! to end the input >>>"
QUESTION = "x = 1"
# The answer to it goes on for as long as any test here takes.
OPTIONS = ["--device", "cpu", "--dtype", "float32", "--max-seq-len", "100000", "--cap", "completion"]
OPTIONS += ["--temperature", "0", "--max-gen-len", "90000", "--stats"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program on a terminal of its own; stdout is one too, or a file."""

    def __init__(self, command: list[str], stdout: Path | None) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        with contextlib.ExitStack() as files:
            out = slave if stdout is None else files.enter_context(stdout.open("wb"))
            self.process = subprocess.Popen(
                command,
                stdin=slave,
                stdout=out,
                stderr=slave,
                env=ENV,
                cwd=ROOT,
                start_new_session=True,
                # The session's own terminal: only from there does Ctrl-C send a signal.
                preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
            )
        self.slave = slave  # kept open, so that what was written last can be read
        self.seen = ""
        self._position = 0

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: str) -> str:
        """Wait until the terminal shows `text`, behind what was waited for before -> what it shows up to there."""
        end = time.monotonic() + HANGS
        while (at := self.seen.find(text, self._position)) < 0:
            assert time.monotonic() < end, f"{text!r} never came: {self.seen[-3000:]!r}"
            ready, _, _ = select.select([self.master], [], [], 1.0)
            if ready:
                self.seen += ESCAPES.sub("", os.read(self.master, 65536).decode("utf-8", "replace"))
            assert ready or self.process.poll() is None, f"it ended before {text!r}: {self.seen[-3000:]!r}"
        found = self.seen[self._position : at]
        self._position = at + len(text)
        return found

    def end(self) -> int:
        """Wait for the end -> the exit code; the terminal is then as it was."""
        code = self.process.wait(HANGS)
        assert termios.tcgetattr(self.slave) == self.before
        return code


@contextlib.contextmanager
def terminal(command: list[str], stdout: Path | None = None) -> Iterator[Terminal]:
    made = Terminal(command, stdout)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()  # torchrun ends its ranks
            try:
                made.process.wait(60)
            except subprocess.TimeoutExpired:
                made.process.kill()
                made.process.wait()
        os.close(made.master)
        os.close(made.slave)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def beginning(endless: Path) -> str:
    """The first twelve tokens of the library's own answer: letters and spaces."""
    with Llama.build(endless, max_seq_len=64, device="cpu", dtype="float32") as llama:
        text: str = llama.text_completion([QUESTION], temperature=0, max_gen_len=12)[0]["generation"]
    assert len(text) >= 12
    return text


def ask(at: Terminal) -> None:
    at.press(f"{QUESTION}\r!!\r")


@pytest.mark.slow
def test_a_session_on_one_rank(tmp_path: Path, endless: Path, beginning: str) -> None:
    with terminal([sys.executable, "-m", "llama", "chat", str(endless), *OPTIONS]) as at:
        at.wait_for("endless, 100,000 tokens, --cap completion; /help lists the commands")
        at.wait_for(PROMPT)
        ask(at)
        at.wait_for("!!")
        at.wait_for(beginning)
        at.press("\x03")
        at.wait_for("stopped")
        at.wait_for(PROMPT)
        at.press("dropped\x03")  # Ctrl-C at the prompt
        at.wait_for(PROMPT)
        at.press("/help\r")
        at.wait_for("/save FILE")
        at.wait_for(PROMPT)
        at.press(f"/save {tmp_path / 'talk.json'}\r")
        assert "dropped" not in at.wait_for("1 turn written")
        at.wait_for(PROMPT)
        ask(at)
        at.wait_for(beginning)
        at.process.send_signal(signal.SIGTERM)
        assert at.end() == 128 + signal.SIGTERM
        at.press("x")
    assert beginning in (tmp_path / "talk.json").read_text()


@pytest.mark.slow
def test_ctrl_c_under_torchrun_stops_the_answer_and_no_rank(
    tmp_path: Path, endless: Path, beginning: str
) -> None:
    """A signal would go to torchrun, which would end all ranks. stdout is a file here: it has the answers alone."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "llama", "chat"]
    answers = tmp_path / "answers"

    def begun() -> int:
        return sum(line.startswith(beginning) for line in answers.read_text().split("\n"))

    with terminal([*command, str(endless), *OPTIONS], answers) as at:
        at.wait_for(PROMPT)
        for turn in (1, 2):
            ask(at)
            wait_until(lambda turn=turn: begun() == turn)
            at.press("\x03")
            at.wait_for("stopped")
            at.wait_for(PROMPT)
        at.press("\x04")  # Ctrl-D
        assert at.end() == 0
    assert begun() == answers.read_text().count("\n") == 2
    assert answers.read_text().replace("\n", "").isprintable()
