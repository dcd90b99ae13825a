"""The events that change an engine from outside, as plain data. Never imports torch.

The first rank of a model sends them to the others, which apply them in the same order. They travel as JSON:
nothing that arrives is executed, and the packets can be read by a person.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..engine.request import Request
from ..sampling import SamplingParams

__all__ = ["Add", "Cancel", "Event", "Pause", "Resume", "Stop", "decode", "encode"]


@dataclass(frozen=True)
class Add:
    """A new request. Later events name it by `ticket`, which is known before the engine gives it an id."""

    ticket: int
    request: Request


@dataclass(frozen=True)
class Cancel:
    """The caller of `ticket` has left. Unknown and finished tickets are ignored, here and below."""

    ticket: int


@dataclass(frozen=True)
class Pause:
    """The caller of `ticket` has too many unread deltas."""

    ticket: int


@dataclass(frozen=True)
class Resume:
    """The caller of `ticket` has caught up."""

    ticket: int


@dataclass(frozen=True)
class Stop:
    """End the service, at once or (`drain`) after its requests. failure: the reason, if it failed."""

    drain: bool = False
    failure: str | None = None


Event = Add | Cancel | Pause | Resume | Stop
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Add, Cancel, Pause, Resume, Stop)}


def encode(events: Sequence[Event]) -> bytes:
    """Events -> a packet; no events -> an empty packet."""
    return json.dumps([_row(event) for event in events], default=_plain).encode() if events else b""


def decode(packet: bytes) -> list[Event]:
    """The inverse of `encode`."""
    return [_event(row) for row in json.loads(packet)] if packet else []


def _row(event: Event) -> list[Any]:
    values = [getattr(event, field.name) for field in fields(event)]
    if isinstance(event, Add):
        request = event.request
        values[1] = {field.name: getattr(request, field.name) for field in fields(request)}
        values[1]["sampling"] = asdict(request.sampling)
    return [type(event).__name__, *values]


def _event(row: list[Any]) -> Event:
    name, *values = row
    if name == Add.__name__:
        given = {key: _restored(value) for key, value in values[1].items() if key != "sampling"}
        values[1] = Request(**given, sampling=SamplingParams(**values[1]["sampling"]))
    made: Event = _KINDS[name](*values)
    return made


def _plain(value: Any) -> Any:
    """For types that JSON does not know: sets, and numpy's integers."""
    return {"set": sorted(value)} if isinstance(value, frozenset | set) else operator.index(value)


def _restored(value: Any) -> Any:
    """JSON's lists and objects -> the tuples and frozensets that a request holds."""
    if isinstance(value, list):
        return tuple(_restored(each) for each in value)
    return frozenset(value["set"]) if isinstance(value, dict) else value
