"""What of this machine a sandboxed program sees: the system's programs and libraries, this Python, and nothing else.

No home, no project, no weights, no /etc but for two files of the loader. Packages of Python are hidden: a program gets
the standard library, and cannot read a benchmark's solutions where a package brings them.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import EvaluationError

__all__ = ["DEVICES", "DEVICE_LINKS", "HOST_NAME", "View", "interpreter", "view"]

HOST_NAME = "sandbox"
DEVICES = ("null", "full", "random", "urandom")
# What is mapped of /dev/zero is shared memory that nobody counts; /dev/full gives zeros too, and cannot be mapped.
DEVICE_LINKS = (("/dev/zero", "full"), ("/dev/fd", "/proc/self/fd"))
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_LOADER = ("/etc/alternatives", "/etc/ld.so.cache")


@dataclass(frozen=True)
class View:
    """shown: files and folders of this machine, read only, at their own places.

    links: place -> where the link leads. hidden: folders within `shown` in whose place an empty one is seen.
    """

    shown: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]

    def parents(self) -> list[str]:
        """The folders that have to be made for `shown`, outermost first."""
        found = {str(parent) for place in self.shown for parent in Path(place).parents}
        return sorted(found - {"/"} - set(self.shown))


def interpreter() -> Path:
    """The Python that runs this one, outside its virtual environment: jobs may run it in every sandbox.

    Raises:
        EvaluationError: this process does not know its interpreter (an embedded Python).
    """
    executable = getattr(sys, "_base_executable", "") or sys.executable
    if not executable:
        raise EvaluationError(
            "no Python to run programs with: sys.executable is empty; run codellama by python"
        )
    return Path(executable).resolve()


@functools.cache
def view(visible: tuple[Path, ...] = ()) -> View:
    """What a job sees that needs `visible` beside the system's own.

    Raises:
        EvaluationError: a path that is not there, or that would show everything.
    """
    shown = ["/usr"]
    links = []
    for name in _SYSTEM:
        place = Path("/", name)
        if place.is_symlink():
            links.append((str(place), os.readlink(place)))
        elif place.is_dir():
            shown.append(str(place))
    shown += [name for name in _LOADER if os.path.exists(name)]
    for path in (*_interpreter_parts(), *visible):
        for place in dict.fromkeys((Path(os.path.abspath(path)), path.resolve())):
            if place == Path("/") or not place.exists():
                raise EvaluationError(
                    f"a sandbox cannot show {place}: it must be there, and be less than everything"
                )
            behind_link = any(place.is_relative_to(link) for link, _ in links)
            if not behind_link and not any(place.is_relative_to(other) for other in shown):
                shown.append(str(place))
    hidden = [str(path) for path in _packages() if any(path.is_relative_to(other) for other in shown)]
    return View(tuple(shown), tuple(links), tuple(hidden))


def _interpreter_parts() -> Iterator[Path]:
    """Where Python and the libraries that it loads lie; a prefix such as conda's holds much more."""
    executable = interpreter()
    yield executable
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        if (Path(prefix) / "lib").is_dir():
            yield Path(prefix) / "lib"


def _packages() -> Iterator[Path]:
    """Folders of installed packages, of this Python and of the system's."""
    for lib in dict.fromkeys((Path(sys.base_prefix, "lib"), Path("/usr/lib"), Path("/usr/local/lib"))):
        yield from sorted(
            path for path in lib.glob("python3*/*-packages") if path.is_dir() and not path.is_symlink()
        )
