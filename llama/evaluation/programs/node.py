"""JavaScript and TypeScript, on node.

A TypeScript program passes only if tsc exits with 0: a type error is a failure, though tsc writes the .js file
nevertheless. MultiPL-E's own runner judges so (its evaluation/src/eval_ts.py: any other exit code of
`tsc --target esnext` is a SyntaxError, and nothing is run). What tsc's newer releases changed by default, such as
`--strict`, is set back to what it was.
"""

from __future__ import annotations

import re

from ..sandbox import Command, Job, Limits
from .language import COMPILER, Language, Need, Tools, visible

__all__ = ["JAVASCRIPT", "TYPESCRIPT"]

# node reserves address space by the gigabyte, and has threads for its compiler and its collector.
_LIMITS = Limits(address_space_bytes=None, processes=64)
_HEAP = 640  # MiB

# Runs what tsc wrote: in the TypeScript file itself the line that writes the token would have to be typed. (In a
# JavaScript file it must be the last line, since a `return` at top level is allowed and ends the file.)
_RUN = """\
const { writeSync } = require('node:fs');
require('./problem.js');
writeSync(3, '{token}');
"""
_TSC_FLAGS = (
    "--target",
    "esnext",
    "--module",
    "es2015",
    "--strict",
    "false",
    "--skipLibCheck",
    "--pretty",
    "false",
)


def _node(tools: Tools, heap: int, *arguments: str) -> tuple[str, ...]:
    return str(tools["node"].resolve()), f"--max-old-space-size={heap}", *arguments


def _javascript(source: bytes, token: str, tools: Tools) -> Job:
    end = f"\n;require('node:fs').writeSync(3, '{token}');\n"
    run = Command(_node(tools, _HEAP, "problem.js"), _LIMITS)
    return Job({"problem.js": source + end.encode()}, [run], visible(tools["node"].resolve()))


def _typescript(source: bytes, token: str, tools: Tools) -> Job:
    tsc = tools["tsc"].resolve()  # a program for node, in its package's folder bin
    compile_ = Command(_node(tools, 1024, str(tsc), *_TSC_FLAGS, "problem.ts"), COMPILER)
    run = Command(_node(tools, _HEAP, "run.js"), _LIMITS)
    files = {"problem.ts": source, "run.js": _RUN.replace("{token}", token).encode()}
    return Job(files, [compile_, run], visible(tools["node"].resolve(), tsc.parents[1]))


_NODE = Need("node", "nodejs", ("node",))
_ERROR = re.compile(r"error TS\d+|^FATAL ERROR: |^(Uncaught )?\w*(Error|Exception)\b")
_TRIAL = "const assert = require('node:assert');\nassert.deepEqual([1 + 1], [2]);\n"
_TYPED_TRIAL = f"declare var require: any;\n{_TRIAL}"
_TSC = Need("tsc", "node-typescript", ("tsc",))
JAVASCRIPT = Language("JavaScript", (_NODE,), _javascript, _ERROR, _TRIAL)
TYPESCRIPT = Language("TypeScript", (_NODE, _TSC), _typescript, _ERROR, _TYPED_TRIAL)
