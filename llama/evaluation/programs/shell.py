"""Bash. A failed test says nothing: `set -e` ends the program.

If an unclosed here-document or quotation of the answer swallows the tests, bash only warns and exits with 0; the line
that writes the token is then swallowed too.
"""

from __future__ import annotations

import re

from ..sandbox import Command, Job
from .language import Language, Need, Tools

__all__ = ["SHELL"]


def _job(source: bytes, token: str, tools: Tools) -> Job:
    end = f"\nbuiltin printf %s {token} >&3\n"
    return Job({"problem.sh": source + end.encode()}, [Command((str(tools["bash"]), "problem.sh"))])


_TRIAL = "set -e\n[[ $(echo $((1 + 1))) = 2 ]]\n"
SHELL = Language("Bash", (Need("bash", "bash", ("bash",)),), _job, re.compile(r"syntax error"), _TRIAL)
