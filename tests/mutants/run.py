"""Each mutant must be killed: a copy of the project gets one change, and the tests named for it must fail.

    python tests/mutants/run.py [--only TEXT] [--jobs 2]

The lists are the `MUTANTS` of the other modules of this folder. Before anything is changed the named tests must
pass, or a mutant would be "killed" by a test that always fails. Exit code 1 if one survives.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from mutant import Mutant  # noqa: E402

# What a copy of the project does without.
_LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "build", "dist", "shared"),
)
# A guard: a mutant that makes a test hang is killed too.
_HANGS = 600.0
# pytest's exit codes: all passed; some failed; stopped by the tests themselves.
_PASSED, _FAILED = 0, 1


def _module(path: Path) -> Any:
    # Under another name: the tests have modules of the same names.
    spec = importlib.util.spec_from_file_location(f"mutants_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mutants() -> list[Mutant]:
    """The mutants of all modules of this folder.

    Raises:
        SystemExit: two have the same name, or the `old` text of one is not exactly once in its file.
    """
    found: list[Mutant] = []
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in ("mutant", "run"):
            found += _module(path).MUTANTS
    names = [each.name for each in found]
    problems = [f"{name!r} names two mutants" for name in {n for n in names if names.count(n) > 1}]
    for each in found:
        path = ROOT / each.file
        count = path.read_text(encoding="utf-8").count(each.old) if path.is_file() else 0
        if count != 1 or each.old == each.new:
            problems.append(
                f"{each.name!r}: its old text is {count} times in {each.file}; it must be there once"
            )
    if problems:
        raise SystemExit("\n".join(problems))
    return found


def _copy(folder: Path) -> None:
    """The project as it stands, with the compiled kernels, which lie beside their source."""
    shutil.copytree(ROOT, folder, ignore=_LEFT_OUT, dirs_exist_ok=True)


def _run(folder: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit code in a copy, and what it printed; a run that hangs counts as failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_HANGS, check=False
        )
    except subprocess.TimeoutExpired:
        return _FAILED, "hangs"
    return done.returncode, done.stdout[-3000:] + done.stderr[-2000:]


def _rebuild(folder: Path) -> None:
    """Compile the kernels of a copy again, where a mutant changed their source."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def _verdict(mutant: Mutant, folder: Path) -> str:
    path = folder / mutant.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    compiled = path.suffix in (".c", ".h")
    try:
        if compiled:
            _rebuild(folder)
        code, printed = _run(folder, mutant.tests)
    finally:
        path.write_text(sound, encoding="utf-8")
        if compiled:
            _rebuild(folder)
    if code == _PASSED:
        return "SURVIVED"
    return "killed" if code == _FAILED else f"NOT RUN (pytest's exit code {code})\n{printed}"


def _work(share: list[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """(mutant, verdict) for each, in a copy of the project of their own."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        _copy(folder)
        for tests in sorted({mutant.tests for mutant in share}):
            code, printed = _run(folder, tests)
            if code != _PASSED:
                raise SystemExit(f"{' '.join(tests)} fails without any mutant (exit code {code}):\n{printed}")
        for mutant in share:
            verdict = _verdict(mutant, folder)
            print(f"{verdict.splitlines()[0]:8}  {mutant.name}", flush=True)
            yield mutant, verdict


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="those whose name or file holds this text")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="copies at work")
    options = parser.parse_args()
    chosen = [each for each in mutants() if options.only in each.name or options.only in each.file]
    if not chosen:
        print(f"no mutant's name or file holds {options.only!r}")
        return 1
    # Mutants of one set of tests stay together, so that their baseline runs once.
    chosen.sort(key=lambda each: each.tests)
    jobs = max(1, min(options.jobs, len(chosen)))
    size = -(-len(chosen) // jobs)
    shares = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    with ThreadPoolExecutor(jobs) as pool:
        verdicts = [item for share in pool.map(lambda each: list(_work(each)), shares) for item in share]
    bad = [(mutant, verdict) for mutant, verdict in verdicts if verdict != "killed"]
    print(f"{len(verdicts)} mutants: {len(verdicts) - len(bad)} killed, {len(bad)} not")
    for mutant, verdict in bad:
        print(f"\n{mutant.name} ({mutant.file}, {' '.join(mutant.tests)})\n{verdict}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
