"""What a sandbox takes and returns: jobs and outcomes. Imports nothing that starts a process."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...errors import EvaluationError

__all__ = ["Command", "Ended", "Job", "Limits", "Outcome", "Sandbox"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a command may use. All of a command's processes count together, except where the unit says otherwise.

    cpu_seconds: processor time; where there is no /proc, of each process, in whole seconds. wall_seconds: from its
        start to its end.
    memory_bytes: of memory in use. address_space_bytes: of each process; None for programs that reserve far more
        than they use (a JVM, node, mono), which are told their limit by their own flags.
    file_bytes: of files written, together. processes: processes and threads.
    output_bytes: of stdout and of stderr, each; what comes later is read and dropped.
    """

    cpu_seconds: float = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 1024 * MIB
    address_space_bytes: int | None = 1024 * MIB
    file_bytes: int = 16 * MIB
    processes: int = 32
    output_bytes: int = 64 * 1024


@dataclass(frozen=True)
class Command:
    """One program and its arguments. Paths of the job's files are relative: the job's folder is the current one.

    environment: the whole of it; a sandbox adds nothing but PATH, HOME and LANG.
    """

    argv: tuple[str, ...]
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Files, and commands that run one after the other in their folder while each exits with 0.

    files: name -> content, in a folder that is the only one that can be written, and is gone afterwards.
    commands: a compiler, then the program, for instance.
    visible: files and folders of this machine that the commands need, read only, beside the system's own.

    Raises:
        EvaluationError: no command, or a file's name that leads out of the folder.
    """

    files: Mapping[str, bytes]
    commands: Sequence[Command]
    visible: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.commands:
            raise EvaluationError("a job needs at least one command")
        for name in self.files:
            parts = name.split("/")
            inner = ["/".join(parts[:length]) for length in range(1, len(parts))]
            if "\0" in name or {"", ".", ".."} & set(parts) or any(folder in self.files for folder in inner):
                raise EvaluationError(
                    f"a job's file cannot be called {name!r}: names are relative, without . and ..,"
                    " and what is a file is no folder of another"
                )


class Ended(enum.Enum):
    """How a job came to its end."""

    EXITED = "exited"  # the last command that ran ended by itself: see exit_code
    CPU = "cpu"  # it used up its processor time
    WALL = "wall"  # it used up its time
    MEMORY = "memory"  # it was ended for the memory that it used
    FILES = "files"  # it was ended for the files that it made, or for printing more than files may hold
    PROCESSES = "processes"  # it was ended for its processes, where the system does not refuse more


@dataclass(frozen=True)
class Outcome:
    """The result of a job; nothing else of it is left.

    command: index of the last command that ran. exit_code: its exit code; 128 + n where signal n ended it.
    stdout, stderr: its output, at most `Limits.output_bytes` of each, which need not be UTF-8.
    token: what was written to file descriptor 3, at most 64 bytes. Only a program's last line knows what to write
        there, so that exiting with 0 in the middle of a program is no success.
    """

    ended: Ended
    command: int
    exit_code: int
    stdout: bytes
    stderr: bytes
    token: bytes


class Sandbox(Protocol):
    """Runs jobs; several threads may call `run` at the same time."""

    @property
    def level(self) -> str:
        """bubblewrap, unshare, sandbox-exec or limits: how well it shuts a program off. For reports."""
        ...

    def run(self, job: Job) -> Outcome:
        """Run a job to its end. When it returns, or raises, no process of the job is left.

        Raises:
            EvaluationError: the sandbox itself could not do its part (not: the program failed).
        """
        ...
