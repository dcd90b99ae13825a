"""Short programs in every language of the evaluation: right, wrong, endless, broken, ending early, greedy.

Each is a frame, laid out as MultiPL-E's problems are, around the body of a function that doubles its argument.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROGRAMS", "Programs"]


@dataclass(frozen=True)
class Programs:
    """Bodies for one frame, in which BODY stands where they go.

    error: what the line of the failed test says. broken: does not compile, and what its line says. early: bodies
    that end the program with 0 in front of the tests. greedy: takes memory without end, and what its line says.
    """

    frame: str
    right: str
    wrong: str
    error: str
    broken: tuple[str, str]
    early: tuple[str, ...]
    greedy: tuple[str, str] | None = None
    endless: str | None = None

    def source(self, body: str) -> str:
        return self.frame.replace("BODY", body)


PYTHON = Programs(
    frame="def double(x):\n    BODY\n\n\nassert double(2) == 4\n",
    right="return x * 2",
    wrong="return x",
    error="AssertionError",
    endless="while True: pass",
    broken=("return x +", "SyntaxError: invalid syntax"),
    early=("raise SystemExit",),
    greedy=("return [0] * 10**10", "MemoryError"),
)

CPP = Programs(
    frame="#include <cassert>\n#include <cstdlib>\n#include <unistd.h>\nlong twice(long x) {\n    BODY\n}\n"
    "int main() {\n    auto candidate = twice;\n    assert(candidate(2) == 4);\n}\n",
    right="return x * 2;",
    wrong="return x;",
    error="problem.cpp:9: int main(): Assertion `candidate(2) == 4' failed.",
    endless="for (volatile long i = 0; ; i = i + 1); return x;",
    broken=("return y;", "problem.cpp:5:12: error: "),
    early=("exit(0);", "return x; }\nstatic int early = (_exit(0), 1);\nlong other() { return early;"),
    greedy=(
        "for (;;) { long *p = new long[1 << 24]; for (int i = 0; i < 1 << 24; i++) p[i] = i; }",
        "bad_alloc",
    ),
)

JAVA = Programs(
    frame="import java.util.*;\nimport org.javatuples.*;\nimport java.security.*;\nclass Problem {\n"
    "    public static long twice(long x) throws Exception {\n    BODY\n    }\n"
    "    public static void main(String[] args) throws Exception {\n    assert(twice(2l) == (4l));\n    }\n\n}\n",
    right='MessageDigest.getInstance("MD5"); return (long) new Pair<Long, Long>(x * 2, x).getValue0();',
    wrong="return x;",
    error='Exception in thread "main" java.lang.AssertionError',
    endless="while (x > 0); return x;",
    broken=("return y;", "Problem.java:6: error: cannot find symbol"),
    early=("System.exit(0); return x;",),
    greedy=("List<long[]> a = new ArrayList<>(); while (true) a.add(new long[1 << 20]);", "OutOfMemoryError"),
)

PHP = Programs(
    frame="<?php\nfunction twice($x) {\n    BODY\n}\n\n"
    "function candidate(...$args) {\n    return twice(...$args);\n}\n\n"
    "function test(): void {\n    if (candidate(2) !== 4) { throw new Exception('Test failed!'); }\n}\n\ntest();",
    right="return $x * 2;",
    wrong="return $x;",
    error="Exception: Test failed! in problem.php:11",
    endless="while (true);",
    broken=("return $x +", "Parse error: syntax error"),
    early=("exit(0);", "}\n ?>"),
    greedy=("$a = []; while (true) $a[] = str_repeat('x', 1 << 20);", "Allowed memory size"),
)

TYPESCRIPT = Programs(
    frame="function twice(x: number): number {\n  BODY\n}\ndeclare var require: any;\n"
    "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n"
    "  assert.deepEqual(candidate(2),4);\n}\n\ntest();",
    right="let later = x; return later * 2;",
    wrong="return x;",
    error="AssertionError [ERR_ASSERTION]: ",
    broken=("let y: string = x; return x * 2;", "problem.ts(2,7): error TS2322: "),  # runs, but for its type
    early=("return (globalThis as any).process.exit(0);",),
)

CSHARP = Programs(
    frame="using System;\nusing System.Numerics;\nusing System.Diagnostics;\nusing System.Collections.Generic;\n"
    "using System.Linq;\nclass Problem {\n    public static long Twice(long x) {\n    BODY\n    }\n"
    "    public static void Main(string[] args) {\n    Debug.Assert(Twice(2L) == (4L));\n    }\n\n}\n",
    right="return (long) new BigInteger(x) * new long[] { 1, 1 }.Sum();",
    wrong="return x;",
    error="Debug.Assert failed in line 11 of problem.cs",
    endless="while (true);",
    broken=("return y;", "problem.cs(8,12): error CS0103: "),
    early=("Environment.Exit(0); return x;",),
    greedy=("var a = new List<long[]>(); while (true) a.Add(new long[1 << 20]);", "OutOfMemoryException"),
)

SHELL = Programs(
    frame='#!/bin/bash\ntwice() {\n    BODY\n}\n\ncandidate() {\n    twice "$@"\n}\n\nset -e\nrun_test() {\n'
    '    [[ $(candidate "2") = "4" ]]\n}\n\nrun_test\n',
    right="echo $(($1 * 2))",
    wrong="echo $1",
    error="exit code 1",
    endless="while true; do :; done",
    broken=("fi", "problem.sh: line 3: syntax error near unexpected token `fi'"),
    early=("echo\n}\nexit 0\nother() {\n    echo", "echo 4\n}\ncat > /dev/null <<EOF"),
)

JAVASCRIPT = Programs(
    frame="function twice(x){\n  BODY\n}\nconst assert = require('node:assert');\n\n\nfunction test() {\n"
    "  let candidate = twice;\n  assert.deepEqual(candidate(2),4);\n}\n\ntest();",
    right="return x * 2;",
    wrong="return x;",
    error="AssertionError [ERR_ASSERTION]: ",
    endless="while (true);",
    broken=("return x +", "SyntaxError: Unexpected token '}'"),
    early=("process.exit(0);", "return x;\n}\nreturn;\nfunction other() {"),
    greedy=("let a = []; while (true) a.push(new Array(1 << 17).fill(x));", "heap out of memory"),
)

PROGRAMS = {
    "python": PYTHON,
    "cpp": CPP,
    "java": JAVA,
    "php": PHP,
    "ts": TYPESCRIPT,
    "cs": CSHARP,
    "sh": SHELL,
    "js": JAVASCRIPT,
}
