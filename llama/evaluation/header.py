"""The header of a file of samples: how they were made, and whether a run can go on where another ended.

Never imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..printable import shown
from .generator import ModelInfo
from .problem import Problem
from .settings import Settings

__all__ = ["Header", "difference", "problems_digest"]


@dataclass(frozen=True)
class Header:
    """The first line of a file of samples: how they were made.

    Args:
        data_sha256: see `problems_digest`.
        data_problems: how many problems the data file has, whatever the limit.
        sandbox: the level that programs ran at.
        versions: of codellama, torch and python.
    """

    settings: Settings
    model: ModelInfo
    data_sha256: str
    data_problems: int
    sandbox: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> int:
        """How many problems the run has."""
        limit = self.settings.limit
        return self.data_problems if limit is None else min(limit, self.data_problems)


def problems_digest(problems: Sequence[Problem]) -> str:
    """A SHA-256 of the problems as they are asked: the same for a file and the same file compressed."""
    text = json.dumps([asdict(problem) for problem in problems], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(old: Header, new: Header) -> str | None:
    """Why a run with `new` cannot go on where one with `old` ended; None if it can."""
    by_weights = old.model.weights is not None and new.model.weights is not None
    before, now = (_options(header, by_weights=by_weights) for header in (old, new))
    for (name, was), (_, given) in zip(before, now, strict=True):
        if was != given:
            return f"{name} is {shown(given)} now, and was {shown(was)}"
    if new.settings.n < old.settings.n:
        return f"n is {new.settings.n} now, and was {old.settings.n}; it can only grow"
    if new.problems < old.problems:
        return f"there are {new.problems:,} problems now, and were {old.problems:,}; a limit can only grow"
    return None


def _options(header: Header, *, by_weights: bool) -> Iterator[tuple[str, object]]:
    """What has to be the same for a file to be continued, by the names that a message uses.

    Args:
        by_weights: whether models are told apart by their weights; else by what they are called.
    """
    settings, model = header.settings, header.model
    yield "the task", settings.task
    yield "the data", f"{header.data_problems:,} problems with the digest {header.data_sha256[:16]}"
    if by_weights:
        yield "the weights' digest", (model.weights or "")[:16]
    else:
        yield "the model", model.name
        yield "the server", model.url
    yield "the dtype", model.dtype
    yield "the cache's dtype", model.cache_dtype or model.dtype
    yield "max_seq_len", model.max_seq_len
    for name in ("temperature", "top_p", "order", "seed", "max_gen_len", "chat"):
        yield name, getattr(settings, name)
    yield "the sandbox", header.sandbox
