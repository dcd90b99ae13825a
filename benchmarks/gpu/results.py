"""results.json: what was measured, and on which code and device."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .figures import Figure

__all__ = ["OutError", "Results", "Run", "identity"]

_VERSION = 1
# Where git cannot be asked, what these folders hold is the state of the code.
_SOURCES = ("llama", "benchmarks", "tests", "CodeLlama-tiny")


class OutError(Exception):
    """The folder for the results cannot be used."""


def _git(root: Path, *words: str) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _sources(root: Path) -> Iterator[Path]:
    for name in _SOURCES:
        for path in sorted((root / name).rglob("*")):
            if path.is_file() and path.suffix not in (".pyc", ".so", ".txt"):
                yield path


def identity(root: Path, out: Path) -> str:
    """The state of the code: its commit, with a hash behind it if files were changed; without git, a hash alone.

    Args:
        out: the folder of the results, which is no part of the code.
    """
    head = _git(root, "rev-parse", "--show-prefix", "HEAD")
    beside = [":/"]
    if out.is_relative_to(root) and out != root:
        beside.append(f":(exclude,top,literal){out.relative_to(root).as_posix()}")
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *beside)
    changed = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--", *beside)
    # A copy within another project's checkout has that one's commit.
    if head is None or listed is None or changed is None or not head.startswith(b"\n"):
        digest = hashlib.sha256()
        for path in _sources(root):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
        return f"files {digest.hexdigest()[:12]}"
    commit = head.split()[0].decode()[:12]
    others = [root / os.fsdecode(name) for name in listed.split(b"\0") if name]
    if not others and not changed:
        return commit
    digest = hashlib.sha256(changed)
    for path in others:
        digest.update(os.fsencode(path) + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return f"{commit} changed {digest.hexdigest()[:12]}"


@dataclass
class Run:
    """Parts of one state of the code on one machine.

    Attributes:
        tree: as `identity` has it.
        machine: as probe.py tells it: the GPU, the versions of what computes.
        parts: of each its status ("done" or "failed"), seconds, figures, what it lacked, clocks.
    """

    tree: str
    machine: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def pretended(self) -> bool:
        return bool(self.machine.get("pretended"))

    def is_done(self, name: str) -> bool:
        return self.parts.get(name, {}).get("status") == "done"

    def figures(self, name: str) -> list[Figure]:
        return [Figure.of(each) for each in self.parts.get(name, {}).get("figures", [])]


class Results:
    """What a folder holds of all runs.

    Raises:
        OutError: the folder cannot be made or written to, or its results.json cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "results.json"
        self.runs: list[Run] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise OutError(f"OUT={folder} cannot be used: {error}") from None
        if text:
            self._read(text)
        self.save()  # so that it is known now, not after the first part

    def _read(self, text: str) -> None:
        try:
            data = json.loads(text)
            if data["version"] != _VERSION:
                raise ValueError(f"its version is {data['version']}, not {_VERSION}")
            self.runs = [Run(**each) for each in data["runs"]]
        except (ValueError, TypeError, KeyError) as error:
            raise OutError(
                f"{self.path} cannot be read ({error}): move it away, or pass another OUT"
            ) from None

    def run(self, tree: str, machine: dict[str, Any]) -> Run:
        """The run of this code on this machine; a new one if there is none."""
        for each in self.runs:
            if (each.tree, each.machine) == (tree, machine):
                return each
        self.runs.append(Run(tree, machine))
        return self.runs[-1]

    def last_seconds(self, name: str, machine: dict[str, Any]) -> float | None:
        """How long a part took when it last ran on this machine, at whatever commit."""
        taken = [
            each.parts[name]["seconds"]
            for each in self.runs
            if name in each.parts and each.machine == machine
        ]
        return float(taken[-1]) if taken else None

    def save(self) -> None:
        """Write results.json, or leave it as it was."""
        data = {"version": _VERSION, "runs": [vars(each) for each in self.runs]}
        self.write("results.json", json.dumps(data, indent=1) + "\n")

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder as a whole. Raises OutError."""
        new = self.folder / f".{name}.new"
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, self.folder / name)
        except OSError as error:
            raise OutError(f"OUT={self.folder} cannot be written to: {error}") from None
