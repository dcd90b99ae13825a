"""Runs the programs of a file of samples again: with a toolchain or a sandbox that was not there.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..errors import EvaluationError
from ..printable import shown
from ..terminal.files import write_atomically
from ..terminal.progress import Progress
from .asking import PROMPT_TOO_LONG, UNSAFE_TAG, Header, problems_digest
from .evaluating import checked_ks, checked_workers, find_task
from .judges import Judges
from .problem import Problem, Sample, Task
from .programs import judge, sandbox_for
from .report import Report
from .samples import Key, header_line, key_of, read_samples, sample_line
from .sandbox import Sandbox

__all__ = ["problems_of", "rescore"]


def rescore(
    path: str | os.PathLike[str],
    *,
    k: int | Iterable[int] | None = None,
    workers: int = 2,
    sandbox: str | Sandbox = "auto",
    data: str | os.PathLike[str] | None = None,
    javatuples: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Run the programs of a file of samples again, and put their verdicts in the place of the old ones.

    The file is replaced once all verdicts are there; until then, and whatever goes wrong, it stays as it was. All else
    in it stays too, but for the sandbox that the header names. No model is needed.

    Args:
        path: the file of samples.
        k, workers, sandbox, data, javatuples, progress: as of `evaluate`.

    Raises:
        EvaluationError: it is not such a file, or a run is writing it; the data is missing, or not the data that the
            samples answer; there is no sandbox.
        FileChangedError: somebody wrote to the file meanwhile.
        OSError: it cannot be read or written.
    """
    path, workers = Path(path), checked_workers(workers)
    with _locked(path):
        content = path.read_bytes()
        header, samples = read_samples(path)
        ks = checked_ks(k, header.settings.n)
        task = find_task(header.settings.task)
        problems = problems_of(path, header, task, None if data is None else Path(data))
        jar = None if javatuples is None else Path(javatuples)
        box = sandbox_for(task.language, sandbox, javatuples=jar)
        again = _Again(path, task, problems, box, jar)
        for sample in samples:
            again.problem(sample)  # before anything is run
        _check_folder(path.resolve().parent)
        judged = _judged(again, samples, workers, progress)
        header = replace(header, sandbox=box.level)
        write_atomically(path.resolve(), _rewritten(content, header, judged.values()), expected=content)
    return Report.of(header, list(judged.values()), header.problems, ks)


def problems_of(path: Path, header: Header, task: Task, data: Path | None) -> dict[str, Problem]:
    """The problems that the samples of a file answer, by task_id, in the task's order.

    Args:
        path: the file of samples, for the message.
        data: the file of the problems; None for the one that a package brings.

    Raises:
        EvaluationError: it is not there, or holds other problems.
    """
    every = task.problems(data)
    if problems_digest(every) != header.data_sha256:
        raise EvaluationError(
            f"{path} answers other problems than these ({header.data_records:,} then, {len(every):,} now, with another"
            " digest); name the data file that it was made with by --data"
        )
    return {problem.task_id: problem for problem in every[: header.settings.limit]}


def _check_folder(folder: Path) -> None:
    """The new file is written beside the old one, hours later. Raises OSError."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "No file can be written in", str(folder))


class _Again:
    """How the program of a sample is run again."""

    def __init__(
        self, path: Path, task: Task, problems: Mapping[str, Problem], box: Sandbox, javatuples: Path | None
    ) -> None:
        self._path, self._task, self._problems = path, task, problems
        self._box, self._javatuples = box, javatuples

    def problem(self, sample: Sample) -> Problem:
        """The problem of a sample. Raises EvaluationError."""
        if sample.task_id not in self._problems:
            raise EvaluationError(
                f"{self._path} has a sample of {shown(sample.task_id)}, which is not among its problems"
            )
        return self._problems[sample.task_id]

    def sample(self, sample: Sample) -> Sample:
        """A sample with a new verdict. One that was not asked for has no program: it keeps its own."""
        if sample.finish_reason in (PROMPT_TOO_LONG, UNSAFE_TAG):
            return sample
        program = self._task.program(self.problem(sample), sample.completion)
        return replace(sample, verdict=judge(self._box, program, javatuples=self._javatuples))


def _judged(again: _Again, samples: list[Sample], workers: int, progress: bool) -> dict[Key, Sample]:
    """The samples with new verdicts, in the same order."""
    found: dict[Key, Sample] = {key_of(sample): sample for sample in samples}
    bar = Progress(len(samples), 0) if progress else None

    def keep(sample: Sample) -> None:
        found[key_of(sample)] = sample
        if bar is not None:
            bar.advance()

    try:
        with Judges(workers, again.sample, keep) as judges:
            for sample in samples:
                judges.put(sample)
            judges.finish()
    finally:
        if bar is not None:
            bar.clear()
    return found


def _rewritten(content: bytes, header: Header, samples: Iterable[Sample]) -> bytes:
    """The file's whole lines, with this header in the place of the last one and these samples in that of the others."""
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    headers = [i for i, line in enumerate(lines) if "header" in json.loads(line)]
    rest = iter(samples)
    return b"".join(
        header_line(header) if i == headers[-1] else line if i in headers else sample_line(next(rest))
        for i, line in enumerate(lines)
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep runs from writing to a file of samples; see `SamplesFile`."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(f"a run is writing {path}; wait for its end") from None
        yield
