"""What a language is to the judge: the tools that it needs, the job that runs a program, and where errors stand."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..sandbox import Job, Limits

__all__ = ["COMPILER", "MIB", "Language", "Need", "Tools", "visible"]

MIB = 1 << 20

# A compiler's own start and library are large, whatever it is given: g++ and tsc take 1.6 s of processor time and
# 0.2 GB for the shortest program, javac 0.6 s, on one core that nobody else uses, and a machine that runs a model
# may take several times as long. So compilers have limits of their own; a program's count from its own start.
COMPILER = Limits(
    cpu_seconds=30,
    wall_seconds=120.0,
    memory_bytes=2048 * MIB,
    address_space_bytes=None,
    file_bytes=64 * MIB,
    processes=128,
)

Tools = Mapping[str, Path]  # the name of a `Need` -> where it is on this machine


@dataclass(frozen=True)
class Need:
    """A program or a file that a language needs.

    Args:
        name: what messages and `Tools` call it.
        package: Debian's package of it.
        programs: names of programs on PATH; the first that is there is taken. None: it is a file.
        file: where Debian has it, if it is a file.
        option: the option of the command line that names another place.
    """

    name: str
    package: str
    programs: tuple[str, ...] = ()
    file: Path | None = None
    option: str = ""

    def find(self) -> Path | None:
        """Where it is on this machine; None if it is not."""
        if self.file is not None:
            return self.file if self.file.is_file() else None
        return next((Path(found) for found in map(shutil.which, self.programs) if found), None)

    def __str__(self) -> str:
        """As a message names what is missing."""
        other = f", or give its place by {self.option}" if self.option else ""
        return f"{self.name} (Debian's package {self.package}{other})"


@dataclass(frozen=True)
class Language:
    """One language of programs.

    Args:
        title: as people write it.
        needs: what must be on this machine.
        job: makes the job from the program's text, the token, and where the needs are. The job writes the token
            to file descriptor 3 once the whole program has run.
        telling: finds, in what a compiler or the program wrote, the lines that name an error. The first is
            taken of a compiler's, the last of a program's.
        trial: a short program that passes where the tools work, and uses what the benchmarks' programs use.
    """

    title: str
    needs: tuple[Need, ...]
    job: Callable[[bytes, str, Tools], Job]
    telling: re.Pattern[str]
    trial: str


def visible(*paths: Path) -> tuple[Path, ...]:
    """Those of `paths` that exist, for `Job.visible`."""
    return tuple(path for path in paths if path.exists())
