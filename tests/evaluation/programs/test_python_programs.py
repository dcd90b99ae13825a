"""Python programs: which pass, which do not, and that whatever an answer holds there is a verdict."""

from __future__ import annotations

import dataclasses
import re

import pytest

from llama.evaluation.problem import Program, Status, Verdict
from llama.evaluation.programs import judge
from llama.evaluation.sandbox import Ended, Job, Outcome, Sandbox

pytestmark = pytest.mark.slow

FAILS = "\nassert 1 + 1 == 3\n"


def judged(sandbox: Sandbox, source: str) -> Verdict:
    return judge(sandbox, Program("python", source))


@pytest.mark.parametrize(
    "source",
    [
        "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n",
        "from __future__ import annotations\nx: Nothing = 1\nassert x == 1",
        '"""A docstring."""\nassert __doc__ == "A docstring."',
        "# -*- coding: latin-1 -*-\nassert True",
        "os = write = open = print = None\ntoken = 3",
        "__builtins__ = None",
        "import os\nos.write = os.dup2 = None",
        "import builtins\nbuiltins.open = builtins.exec = builtins.compile = None",
        "import sys\ndel sys.modules['os'], sys.modules['__main__']",
        "assert __name__ != '__main__'\nif __name__ == '__main__':\n    input()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nassert A() == A(1)",
        "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
        "import hashlib, zlib, decimal, re, math, typing, heapq, collections, itertools, functools",
        "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')",
        "assert ord('\u00e9\U0001f600'[1]) == 0x1f600",
        "import sys\nassert sys.flags.isolated and sys.flags.no_site and sys.flags.dont_write_bytecode",
        "import os\nassert set(os.environ) <= {'PATH', 'HOME', 'LANG', 'PWD', 'SHLVL', '_'}",
        "x = 1  # a comment without a line's end",
    ],
)
def test_a_program_whose_tests_all_hold_passes(sandbox, source):
    assert judged(sandbox, source) == Verdict(Status.PASSED)


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:\n    pass", "SyntaxError: invalid syntax"),
        ("x = 1 \\", "SyntaxError: unexpected EOF while parsing"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import numpy", "ModuleNotFoundError: No module named 'numpy'"),
        ("import run_no_such_module", "ModuleNotFoundError: No module named 'run_no_such_module'"),
        ("input()", "EOFError: EOF when reading a line"),
        ("raise ValueError('two\\nlines')", "lines"),
        ("raise ValueError('a\\x1b[2Jb')", "ValueError: a\\x1b[2Jb"),
        ("raise ValueError('/home/me/secret/file.txt is gone')", "ValueError: file.txt is gone"),
        ("open('/no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: 'file'"),
        ("raise ValueError(hex(2**40))", "ValueError: 0x..."),
        ("import sys\nsys.exit(3)", "exit code 3"),
        ("import sys\nsys.exit('a reason')", "a reason"),
        ("import os\nos.kill(os.getpid(), 9 - 3)", "ended by signal 6"),
        ("import sys\nsys.stderr.buffer.write(b'\\xff\\n')\nsys.exit(1)", "\ufffd"),
    ],
)
def test_a_failed_program_tells_its_error_in_one_line(sandbox, source, detail):
    assert judged(sandbox, source) == Verdict(Status.FAILED, detail)


EARLY = "it ended with 0, but before the end of its tests"


@pytest.mark.parametrize(
    "source",
    [
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos._exit(0)",
        "import os\nos.write(3, b'0' * 32)\nos._exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)" + FAILS,
        "import os, sys\nsys.excepthook = lambda *args: os._exit(0)" + FAILS,
        "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()\nimport time\ntime.sleep(20)",
        "import os\nos.execv('/bin/true', ['true'])",
    ],
)
def test_no_program_passes_that_ends_with_0_before_its_tests_do(sandbox, source):
    assert judged(sandbox, source) == Verdict(Status.FAILED, EARLY)


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.close(3)",
        "import os\nos.closerange(0, 100)",
        "import os\nos.close(3)\nos.open('/dev/null', os.O_RDONLY)",
        "import os\nos.close(3)\nfile = open('mine', 'w')",
        "import os, sys\nprint('held back')\nos.close(1)",
        "\x00",
        "x = 'a\x00b'\n" + FAILS,
        "x = 1" * 300_000,
        "(" * 100_000,
        "def f():\n    f()\nf()",
        "x = 'a' * (8 << 30)",
        "while True: pass" + FAILS * 3 + "1 +",
    ],
)
def test_hostile_programs_fail_and_have_a_printable_line(sandbox, source):
    verdict = judged(sandbox, source)
    assert verdict.status is Status.FAILED
    assert verdict.detail
    assert verdict.detail.isprintable()
    assert len(verdict.detail) <= 200


@pytest.mark.parametrize("code", [0xD800, 0xDCFF, 0xDFFF])
def test_a_lone_surrogate_is_a_failure_that_says_where_it_stands(sandbox, code):
    before = "assert True\n"
    verdict = judged(sandbox, f"{before}{chr(code)} = 1")
    assert verdict.status is Status.FAILED
    assert f"U+{code:04X}" in verdict.detail
    assert f"at character {len(before)}:" in verdict.detail
    assert verdict.detail.isprintable()


def test_an_error_line_of_a_megabyte_is_cut(sandbox):
    verdict = judged(sandbox, "raise ValueError('/x' * 1_000_000)")
    assert verdict.status is Status.FAILED
    assert len(verdict.detail) <= 200


class Scripted:
    """A sandbox that answers what it was told, as a program would that has read its own token."""

    level = "limits"

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def run(self, job: Job) -> Outcome:
        (token,) = re.findall(rb"[0-9a-f]{32}", job.files["run.py"])
        texts = {
            name: getattr(self.outcome, name).replace(b"TOKEN", token)
            for name in ("stdout", "stderr", "token")
        }
        return dataclasses.replace(self.outcome, **texts)


OUTCOME = Outcome(Ended.EXITED, 0, 0, b"", b"", b"TOKEN")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict(Status.PASSED)),
        ({"stderr": b"a warning"}, Verdict(Status.PASSED)),
        ({"exit_code": 1}, Verdict(Status.FAILED, "exit code 1")),
        ({"exit_code": 139}, Verdict(Status.FAILED, "ended by signal 11")),
        ({"exit_code": 1, "stderr": b"it is TOKEN"}, Verdict(Status.FAILED, "it is ...")),
        ({"token": b""}, Verdict(Status.FAILED, EARLY)),
        ({"token": b"TOKENTOKEN"}, Verdict(Status.FAILED, EARLY)),
        ({"ended": Ended.CPU}, Verdict(Status.TIMED_OUT, "it used up 10 s of processor time")),
        ({"ended": Ended.WALL}, Verdict(Status.TIMED_OUT, "it had not ended after 30 s")),
        ({"ended": Ended.MEMORY}, Verdict(Status.FAILED, "it used more than 1,024 MiB of memory")),
    ],
)
def test_a_verdict_follows_from_how_the_program_ended(changes, verdict):
    sandbox = Scripted(dataclasses.replace(OUTCOME, **changes))
    assert judge(sandbox, Program("python", "x = 1")) == verdict


def test_tokens_differ_from_run_to_run():
    seen = set()

    class Keeping(Scripted):
        def run(self, job: Job) -> Outcome:
            seen.add(super().run(job).token)
            return super().run(job)

    for _ in range(3):
        judge(Keeping(OUTCOME), Program("python", ""))
    assert len(seen) == 3
