"""The verdict on one program: it passes only if it exits with 0 after its last test."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from ...printable import printable
from ..problem import Program, Status, Verdict
from ..sandbox import BYTES_OF_A_FILE, Ended, Job, Limits, Outcome, Sandbox
from .language import MIB, Language
from .languages import LANGUAGES, find

__all__ = ["judge"]

LONGEST_DETAIL = 200  # characters

# The folders of an absolute path, which are this machine's and, where temporary, differ from run to run; and an
# address in memory, which differs too. A resumed run has to end with the same verdicts.
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"`:;,()<>|]+/)+")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")


def judge(sandbox: Sandbox, program: Program, *, javatuples: Path | None = None) -> Verdict:
    """Run a program and say what became of it. Several threads may call this at the same time.

    It passes if its last command exits with 0 and wrote this run's token, which the last line of a program does:
    `sys.exit(0)` before the tests is a failure.

    Args:
        sandbox: where it runs.
        program: its language is a key of `LANGUAGES`.
        javatuples: the jar of Java's programs; None for Debian's place.

    Raises:
        EvaluationError: the sandbox could not do its part; whatever the program does is a verdict.
    """
    language = LANGUAGES[program.language]
    tools, lacking = find(program.language, javatuples=javatuples)
    if lacking:
        return Verdict(Status.NOT_RUN, _line(lacking))
    try:
        source = program.source.encode("utf-8")
    except UnicodeEncodeError as error:
        character = ord(program.source[error.start])
        return Verdict(
            Status.FAILED,
            f"a lone surrogate, U+{character:04X}, at character {error.start:,}: no Unicode text",
        )
    token = secrets.token_hex(16)
    job = language.job(source, token, tools)
    outcome = sandbox.run(job)
    return _verdict(language, job, outcome, token)


def _verdict(language: Language, job: Job, outcome: Outcome, token: str) -> Verdict:
    limits = job.commands[outcome.command].limits
    last = outcome.command == len(job.commands) - 1
    who = "it" if last else "its compiler"
    if outcome.ended is not Ended.EXITED:
        status = Status.TIMED_OUT if outcome.ended in (Ended.CPU, Ended.WALL) else Status.FAILED
        return Verdict(status, f"{who} {_excess(outcome.ended, limits)}")
    if outcome.exit_code != 0 or not last:
        return Verdict(Status.FAILED, _detail(language, outcome, last, token))
    if outcome.token != token.encode():
        return Verdict(Status.FAILED, "it ended with 0, but before the end of its tests")
    return Verdict(Status.PASSED)


def _excess(ended: Ended, limits: Limits) -> str:
    files = limits.file_bytes // BYTES_OF_A_FILE
    return {
        Ended.CPU: f"used up {limits.cpu_seconds} s of processor time",
        Ended.WALL: f"had not ended after {limits.wall_seconds:g} s",
        Ended.MEMORY: f"used more than {limits.memory_bytes // MIB:,} MiB of memory",
        Ended.FILES: f"made more than {limits.file_bytes // MIB:,} MiB or {files:,} of files",
        Ended.PROCESSES: f"had more than {limits.processes} processes and threads",
    }[ended]


def _detail(language: Language, outcome: Outcome, last: bool, token: str) -> str:
    """The line that names the error. Of a compiler the first, wherever it writes; of a program the last of stderr."""
    output = outcome.stderr if last else outcome.stderr + b"\n" + outcome.stdout
    text = output.decode("utf-8", "replace").replace(token, "...")
    lines = [line for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if language.telling.search(line)]
    if telling:
        return _line(telling[-1 if last else 0])
    if lines:
        return _line(lines[-1])
    code = outcome.exit_code
    return f"ended by signal {code - 128}" if code > 128 else f"exit code {code}"


def _line(text: str) -> str:
    brief = _ADDRESS.sub("0x...", _FOLDERS.sub("", text))
    return printable(brief.strip(), LONGEST_DETAIL)
