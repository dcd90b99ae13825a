"""The languages that answers are written in: how a program is compiled and run, and what its end says.

`judge(sandbox, program)` gives a verdict; `sandbox_for` opens the sandbox and tries the language before a run.
The programs run in a sandbox and nowhere else.
"""

from __future__ import annotations

from .language import Language, Need
from .languages import LANGUAGES, missing
from .trial import sandbox_for, try_language
from .verdict import judge

__all__ = ["LANGUAGES", "Language", "Need", "judge", "missing", "sandbox_for", "try_language"]
