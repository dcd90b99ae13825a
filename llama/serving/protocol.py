"""What happens to an engine from outside, as plain data. Never imports torch.

The first rank of a model sends these to the others, which apply them in the same order. They travel as
JSON: nothing that arrives is ever run, and a reader of the wire can read it.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence as Rows
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..engine.request import Request

if TYPE_CHECKING:
    from ..sampling import SamplingParams

__all__ = ["Add", "Cancel", "Event", "Pause", "Resume", "Stop", "decode", "encode"]


@dataclass(frozen=True)
class Add:
    """A request. `ticket` names it in later events: unlike the engine's id it is known beforehand."""

    ticket: int
    request: Request


@dataclass(frozen=True)
class Cancel:
    """The caller of `ticket` went away. Unknown and finished tickets are fine, here and below."""

    ticket: int


@dataclass(frozen=True)
class Pause:
    """The caller of `ticket` stopped reading."""

    ticket: int


@dataclass(frozen=True)
class Resume:
    """The caller of `ticket` reads on."""

    ticket: int


@dataclass(frozen=True)
class Stop:
    """The service ends: now, or with `drain` when its requests have ended. failure: why, if it failed."""

    drain: bool = False
    failure: str | None = None


Event = Add | Cancel | Pause | Resume | Stop
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Add, Cancel, Pause, Resume, Stop)}


def encode(events: Rows[Event]) -> bytes:
    """Events -> bytes; none -> no bytes."""
    return json.dumps([_row(event) for event in events], default=_plain).encode() if events else b""


def decode(packet: bytes, sampling: type[SamplingParams]) -> list[Event]:
    """The inverse of `encode`. sampling: the class of `Request.sampling`, which lives beside torch."""
    return [_event(row, sampling) for row in json.loads(packet)] if packet else []


def _row(event: Event) -> list[Any]:
    values = [getattr(event, field.name) for field in fields(event)]
    if isinstance(event, Add):
        request = event.request
        values[1] = {field.name: getattr(request, field.name) for field in fields(request)}
        values[1]["sampling"] = asdict(request.sampling)
    return [type(event).__name__, *values]


def _event(row: list[Any], sampling: type[SamplingParams]) -> Event:
    name, *values = row
    if name == Add.__name__:
        given = {key: _restored(value) for key, value in values[1].items() if key != "sampling"}
        values[1] = Request(**given, sampling=sampling(**values[1]["sampling"]))
    made: Event = _KINDS[name](*values)
    return made


def _plain(value: Any) -> Any:
    """What JSON does not know: a set, and the integers of numpy."""
    return {"set": sorted(value)} if isinstance(value, frozenset | set) else operator.index(value)


def _restored(value: Any) -> Any:
    """A request holds tuples and frozensets where JSON has lists and objects."""
    if isinstance(value, list):
        return tuple(_restored(each) for each in value)
    return frozenset(value["set"]) if isinstance(value, dict) else value
