"""The languages that answers are written in: how a program is compiled and run, and what its end says.

`judge(sandbox, program)` is the whole of it; `unusable` says in front of a run why a language cannot be judged.
The programs run in a sandbox and nowhere else.
"""

from __future__ import annotations

from .judging import judge, unusable
from .language import Language, Need
from .languages import LANGUAGES, missing

__all__ = ["LANGUAGES", "Language", "Need", "judge", "missing", "unusable"]
