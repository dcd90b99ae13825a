"""Libraries that the user's Python lacks, from a folder of wheels. That Python itself stays as it is.

python -m gpu.libraries build/gpu-wheels      fills the folder, from the network: `make gpu-wheels`
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .probe import NEEDED

__all__ = ["LibrariesError", "install", "main"]

ROOT = Path(__file__).resolve().parents[2]
_LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock")
# Projects that are published as sources only: their wheel is made here, and is the same for every Python.
_SOURCES = {"fairscale"}
# The Pythons that the package is tested with, and the systems that its wheels are for.
_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_LIBCS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_24",
    "manylinux_2_26",
    "manylinux_2_27",
    "manylinux_2_28",
)
MOST_BYTES = 64 << 20
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


class LibrariesError(Exception):
    """The libraries cannot be had; the message says what to do."""


def projects(modules: Iterable[str]) -> list[str]:
    """The projects that have the modules, with what these need in turn."""
    return [project for module in modules for project in NEEDED[module]]


def install(modules: Sequence[str], wheels: Path, target: Path) -> None:
    """Unpack what has the modules into `target`, from the folder of wheels alone.

    Raises:
        LibrariesError: pip is not there, or the folder lacks a wheel for this Python.
    """
    names = projects(modules)
    where = ("--no-index", "--no-deps", "--no-compile", "--find-links", str(wheels), "--target", str(target))
    done = _pip("install", *where, *names)
    if done.returncode:
        raise LibrariesError(
            f"this Python ({sys.executable}, {platform.python_version()}) lacks {', '.join(modules)}, and"
            f" {wheels} does not give them: run `make gpu-wheels` where there is a network, and copy that folder"
            f" here. pip says: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}"
        )


def _pip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_PIP, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def locked(names: Iterable[str]) -> dict[str, str]:
    """The blocks of the lock files, a release with its hashes each, of some projects."""
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in _LOCKS)
    blocks = {}
    for block in re.findall(r"^\S.*(?:\n +\S.*)*\n", text, re.MULTILINE):
        blocks[block.partition("==")[0]] = block
    return {name: blocks[name] for name in names}


def main(folder: Path) -> int:
    """Fill the folder with what NEEDED names, at the releases of the lock files -> the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    blocks = locked(projects(NEEDED))
    with tempfile.TemporaryDirectory() as work:
        fetched = Path(work) / "requirements.txt"
        fetched.write_text("".join(block for name, block in blocks.items() if name not in _SOURCES))
        made = Path(work) / "sources.txt"
        made.write_text("".join(blocks[name] for name in _SOURCES))
        hashed = ("--require-hashes", "--no-deps")
        calls = [
            ("wheel", *hashed, "--no-build-isolation", "--wheel-dir", str(folder), "--requirement", str(made))
        ]
        platforms = [f"--platform={libc}_{platform.machine()}" for libc in _LIBCS]
        for python in _PYTHONS:
            options = ("--only-binary=:all:", f"--python-version={python}", *platforms, "--dest", str(folder))
            calls.append(("download", *hashed, *options, "--requirement", str(fetched)))
        for call in calls:
            done = _pip(*call)
            if done.returncode:
                print(done.stderr, file=sys.stderr)
                return 1
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.1f} MiB")
    if size > MOST_BYTES:
        print(f"{folder} is larger than {MOST_BYTES >> 20} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
