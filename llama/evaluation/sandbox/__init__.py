"""Runs programs that nobody has read, shut off from this machine. Knows nothing of models or benchmarks."""

from __future__ import annotations

from .inside import BYTES_OF_A_FILE
from .job import Command, Ended, Job, Limits, Outcome, Sandbox
from .opening import LEVELS, open_sandbox
from .view import interpreter

__all__ = [
    "BYTES_OF_A_FILE",
    "LEVELS",
    "Command",
    "Ended",
    "Job",
    "Limits",
    "Outcome",
    "Sandbox",
    "interpreter",
    "open_sandbox",
]
