"""`evaluate`: a benchmark from its name to its report. Never imports torch itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .. import __version__
from ..printable import tell
from ..terminal.progress import Progress
from .generator import Generator, ModelInfo
from .grader import Grader
from .header import Header, problems_digest
from .problem import Problem, Sample, Task
from .programs import missing, sandbox_for
from .report import Report
from .run import limited, make_samples, missing_requests
from .samples import Key, SamplesFile, check_file, key_of
from .sandbox import Sandbox
from .settings import Settings, checked_ks, checked_workers, settings_of
from .tasks import find_task

if TYPE_CHECKING:
    from ..generation import Llama

__all__ = ["evaluate"]


def evaluate(
    model: Llama | Generator | Callable[[], Llama],
    task: str | Task,
    *,
    n: int = 1,
    temperature: float | None = None,
    top_p: float = 0.95,
    k: int | Iterable[int] | None = None,
    order: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 2,
    sandbox: str | Sandbox = "auto",
    out: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    chat: bool = False,
    max_gen_len: int = 512,
    javatuples: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Report:
    """Have a model answer a benchmark's problems, run its answers as programs, and report how many passed.

    This runs code that a model wrote and nobody has read, in a sandbox. With several ranks, all of them make this call:
    the first runs the programs and writes the file, and all get the report.

    Args:
        model: a Llama; a `RemoteGenerator` for a server's model; or a function that loads a Llama, which is called when
            everything else has been checked.
        task: its name, one of `tasks.TASKS`.
        n: samples of each problem. They are numbered, and sample j is the same for any n.
        temperature: 0 takes the likeliest token. By default 0 for one sample, and 0.8 for more, as in the paper.
        top_p: draw from the likeliest tokens that together have this probability, from 0 to 1.
        k: of pass@k, each at most n; by default those of 1, 10 and 100 that are.
        order: of infilling: psm (the default), spm or both.
        seed: of all samples.
        limit: only the first so many problems.
        workers: programs that run at the same time.
        sandbox: auto, or a level by name, see `sandbox.open_sandbox`; or a Sandbox.
        out: file of the samples. An existing one is continued, if it was made with the same options; only n and limit
            may have grown. None keeps the samples in memory.
        data: file of the problems; None for the one that a package brings.
        chat: ask an Instruct model in its chat format, and take the fenced code out of its answer.
        max_gen_len: most new tokens of an answer; less where max_seq_len leaves less.
        javatuples: javatuples.jar, which Java's programs need; by default where Debian installs it.
        progress: tell on stderr how many samples there are already; on a terminal draw a progress bar.

    Raises:
        EvaluationError: an option out of range; no data, no sandbox; a file of samples that does not fit.
        NumericsError: logits that are not finite.
        RankError: one of several ranks failed.
        OSError: `out` cannot be written. What was written is kept, and the same call goes on from there.
    """
    found = find_task(task) if isinstance(task, str) else task
    settings = settings_of(
        found,
        n=n,
        temperature=temperature,
        top_p=top_p,
        order=order,
        seed=seed,
        limit=limit,
        max_gen_len=max_gen_len,
        chat=chat,
    )
    ks = checked_ks(k, settings.n)
    run = _Run(
        found,
        settings,
        sandbox,
        checked_workers(workers),
        None if out is None else Path(out),
        None if data is None else Path(data),
        None if javatuples is None else Path(javatuples),
        progress,
    )
    if callable(model):
        model = run.load(model)
    if hasattr(model, "session"):  # a Llama, so torch is loaded
        from .local import on_all_ranks

        header, samples = on_all_ranks(cast("Llama", model), run.make)
    else:
        header, samples = run.make(model)
    return Report.of(header, samples, ks)


@dataclass(frozen=True)
class _Run:
    """A run whose options have been checked. Only `task` and `settings` change its samples."""

    task: Task
    settings: Settings
    sandbox: str | Sandbox
    workers: int
    out: Path | None
    data: Path | None
    javatuples: Path | None
    progress: bool

    @cached_property
    def all_problems(self) -> list[Problem]:
        """All problems of the data file."""
        return self.task.problems(self.data)

    @cached_property
    def box(self) -> Sandbox:
        """The open sandbox, in which the language of the programs works."""
        return sandbox_for(self.task.language, self.sandbox, javatuples=self.javatuples)

    def load(self, model: Callable[[], Llama]) -> Llama:
        """Load the model, which takes minutes, only after data and sandbox were found to work."""
        from ..distributed.environment import is_first_rank

        if is_first_rank():
            _ = self.all_problems, self.box
            if self.out is not None:
                check_file(self.out, self._header)
        return model()

    @cached_property
    def digest(self) -> str:
        """Of all problems: the file is checked by it before the model is loaded, and again with it."""
        return problems_digest(self.all_problems)

    def _header(self, model: ModelInfo) -> Header:
        return Header(self.settings, model, self.digest, len(self.all_problems), self.box.level, _versions())

    def make(self, generator: Generator) -> tuple[Header, list[Sample]]:
        """Make the samples that are not there yet -> the header of the run, and all its samples."""
        settings = self.settings
        problems = limited(self.all_problems, settings)
        header = self._header(generator.model)
        total = header.problems * len(settings.orders) * settings.n
        opened: AbstractContextManager[SamplesFile | None] = nullcontext()
        if self.out is not None:
            opened = SamplesFile(self.out, header)
        with opened as file:
            done = {} if file is None else dict(file.samples)
            requests = missing_requests(problems, settings, done)
            if self.progress:
                self._tell_state(file, len(done), total)
            with _keeping(done, file, total, self.progress) as keep:
                grader = Grader(self.task, self.box, self.javatuples)
                make_samples(generator, requests, settings, grader, self.workers, keep)
        return header, list(done.values())

    def _tell_state(self, file: SamplesFile | None, done: int, total: int) -> None:
        if file is not None and file.torn:
            tell(f"the last line of {file.path} was incomplete; it is dropped")
        if done:
            tell(f"{done:,} of {total:,} samples are done already")
        lacking = missing(self.task.language, javatuples=self.javatuples)
        if lacking:
            tell(f"{lacking}, so the programs are not run; eval --rescore runs them later")


@contextmanager
def _keeping(
    done: dict[Key, Sample], file: SamplesFile | None, total: int, progress: bool
) -> Iterator[Callable[[Sample], None]]:
    """A function that adds a sample to `done` and to the file, and draws the progress bar."""
    bar = Progress(total, len(done), speaks=progress)

    def keep(sample: Sample) -> None:
        if file is not None:
            file.append(sample)
        done[key_of(sample)] = sample
        bar.advance()

    try:
        yield keep
    except BaseException:
        bar.clear()
        if progress and file is not None:
            tell(
                f"{len(done):,} of {total:,} samples are in {file.path}; the same command goes on from there"
            )
        raise
    bar.clear()


def _versions() -> dict[str, str]:
    return {"codellama": __version__, "torch": metadata.version("torch"), "python": platform.python_version()}
