"""The parts of a run, the most valuable first."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PARTS", "Part", "UnknownPartError", "chosen"]

# No part may take longer, so that a call with the default limit can hold each.
MOST_SECONDS = 530.0


class UnknownPartError(Exception):
    """A name that is none of the parts."""


@dataclass(frozen=True)
class Part:
    """A process of a run.

    Attributes:
        about: what it measures, for the heading of its figures.
        seconds: what it is expected to take on a large GPU; afterwards what it took is known.
        words: behind the Python's name; by default measure.py with the part's name.
        limit: seconds after which it counts as hanging.
    """

    name: str
    about: str
    seconds: float
    words: tuple[str, ...] = ()
    limit: float = MOST_SECONDS

    @property
    def command(self) -> tuple[str, ...]:
        return self.words or ("-m", "gpu.measure", self.name)


PARTS = (
    Part("tests", "the laws of tests/gpu on the device", 150, limit=300),
    Part("ceilings", "what the device can do: copies, products of matrices, launches", 40, limit=120),
    Part("decode-7b", "decoding, 7B in bfloat16", 120, limit=300),
    Part("prefill-7b", "prompts, 7B in bfloat16", 60, limit=180),
    Part("profile", "one decode step, 7B in bfloat16", 60, limit=180),
    Part("transformers", "beside transformers, in turn, 7B in bfloat16", 150, limit=400),
    Part("34b", "34B in bfloat16", 120, limit=300),
)


def chosen(names: str) -> list[Part]:
    """The parts with these names, in the order of PARTS; all, if there are none.

    Args:
        names: with commas or spaces between them.
    """
    wanted = names.replace(",", " ").split()
    known = [part.name for part in PARTS]
    if unknown := [name for name in wanted if name not in known]:
        raise UnknownPartError(f"PARTS={' '.join(unknown)} is unknown; known are {', '.join(known)}")
    return [part for part in PARTS if not wanted or part.name in wanted]
