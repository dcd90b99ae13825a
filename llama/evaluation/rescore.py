"""Runs the programs of a file of samples again, say with a toolchain that was missing.

Never imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import EvaluationError
from ..terminal.files import write_atomically
from ..terminal.progress import Progress
from .generator import NOT_ASKED
from .grader import Grader
from .header import Header
from .problem import Problem, Sample
from .programs import sandbox_for
from .report import Report
from .run import answered_problems
from .samples import Key, header_line, key_of, read_samples, sample_line
from .sandbox import Sandbox
from .settings import checked_ks, checked_workers
from .tasks import find_task
from .worker_pool import WorkerPool

__all__ = ["rescore"]


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
    """Run the programs of a file of samples again, and replace their verdicts.

    The file is replaced once all verdicts are known; if anything goes wrong before, it stays as it was. Only the
    verdicts and the header's sandbox change. No model is needed.

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
        problems = answered_problems(path, header, samples, None if data is None else Path(data))
        jar = None if javatuples is None else Path(javatuples)
        box = sandbox_for(task.language, sandbox, javatuples=jar)
        _check_folder(path.resolve().parent)
        graded = _graded(Grader(task, box, jar), problems, samples, workers, progress)
        header = replace(header, sandbox=box.level)
        write_atomically(path.resolve(), _rewritten(content, header, graded.values()), expected=content)
    return Report.of(header, list(graded.values()), ks)


def _check_folder(folder: Path) -> None:
    """The new file is written beside the old one, hours later. Raises OSError."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "No file can be written in", str(folder))


def _graded(
    grader: Grader, problems: Mapping[str, Problem], samples: Sequence[Sample], workers: int, progress: bool
) -> dict[Key, Sample]:
    """The samples with new verdicts, in the same order. One that was not asked for has no program: it keeps its own."""
    found = {key_of(sample): sample for sample in samples}
    asked = [sample for sample in samples if sample.finish_reason not in NOT_ASKED]
    bar = Progress(len(asked), 0, speaks=progress)

    def again(sample: Sample) -> Sample:
        return replace(sample, verdict=grader.verdict(problems[sample.task_id], sample.completion))

    def keep(sample: Sample) -> None:
        found[key_of(sample)] = sample
        bar.advance()

    try:
        with WorkerPool(workers, again, keep) as pool:
            for sample in asked:
                pool.put(sample)
            pool.finish()
    finally:
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
