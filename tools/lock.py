"""Write the lock files that `make` installs from: each release with the hashes of all its files, for any platform.

    pip install uv
    python tools/lock.py

To take a new release of a direct dependency, change constraints.txt (of a client: its group in pyproject.toml) and run
this. What they need in turn comes in its newest release. torch is not locked, see constraints.txt.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What comes with a build of torch for GPUs, at versions that torch's own metadata names.
_WITH_TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
_OPTIONS = (
    "--quiet",
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-header",
    "--no-annotate",
)
# The extras that the tests need.
_TESTED = ("dev", "server", "terminal", "eval")
# The dependency groups of `make clients`: an environment and a lock file for each.
_CLIENTS = ("clients", "lm-eval", "text-generation")
_HEADER = "# {}. Written by tools/lock.py, from constraints.txt; not to be edited.\n"


def resolve(source: str, *options: str, given: str = "") -> dict[str, str]:
    """The closure of what `source` requires: the block of lines of each project, by its name.

    Args:
        source: a file of requirements below the root, `-` for those in `given`, or none where options name them.
    """
    sources = [source] if source else []
    command = ["uv", "pip", "compile", *_OPTIONS, "--constraint", "constraints.txt", *options, *sources]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    blocks: dict[str, str] = {}
    for block in re.findall(r"^\S.*(?:\n +\S.*)*\n", done.stdout, re.MULTILINE):
        name = block.partition("==")[0]
        if not _WITH_TORCH.fullmatch(name):
            blocks[name] = blocks.get(name, "") + block
    return blocks


def write(name: str, holds: str, blocks: dict[str, str]) -> None:
    text = _HEADER.format(holds) + "".join(blocks.values())
    if "://" in text:
        raise SystemExit(f"{name} would name the address of an index")
    (ROOT / name).write_text(text, encoding="utf-8")


def main() -> None:
    build = resolve("-", given="setuptools\nwheel\n")
    write("requirements-build.lock", "What builds the package and fairscale", build)
    core = resolve("requirements.txt")
    write("requirements.lock", "The core without torch, and what torch needs", core)
    everything = resolve(
        "pyproject.toml", *(f"--extra={name}" for name in _TESTED), "--constraint=requirements.lock"
    )
    dev = {name: block for name, block in everything.items() if name not in core}
    write("requirements-dev.lock", "What the extras [dev], [server], [terminal] and [eval] add", dev)
    known = ("--constraint=requirements.lock", "--constraint=requirements-dev.lock")
    ray = resolve("pyproject.toml", "--extra=ray", *known)
    # What has a marker there is not installed everywhere.
    there = {name for name, block in (core | dev).items() if " ; " not in block}
    added = {name: block for name, block in ray.items() if name not in there}
    write("tests/ray/requirements.lock", "What the extra [ray] adds to those of the tests", added)
    for group in _CLIENTS:
        name = f"tests/clients/requirements-{group}.lock"
        write(name, f"The dependency group {group}", resolve("", f"--group={group}"))


if __name__ == "__main__":
    main()
