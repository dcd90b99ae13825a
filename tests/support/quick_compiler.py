"""A C compiler for tests of wheels: the kernels of all levels take it 20 s of processor time, and one level 5 s."""

from __future__ import annotations

from pathlib import Path

from cpu_levels import compiler

__all__ = ["quick_compiler"]

# setup.py compiles each library in a folder of its name.
_SCRIPT = """#!/bin/sh
set -e
case " $* " in *" -c "*)
    for word; do
        [ "$before" != -o ] || object=$word
        before=$word
    done
    case "$object" in {wanted}) ;; *)
        {cc} "$@" -E
        exec {cc} -fPIC -x c -c /dev/null -o "$object"
    esac
esac
# A program that runs once is soonest there so.
case " $* " in *" -c "*) exec {cc} "$@" -Og ;; esac
exec {cc} "$@"
"""


def quick_compiler(path: Path, *libraries: str) -> str:
    """Write a program for CC, which compiles these libraries; of the others it reads the sources, and compiles nothing.

    Returns:
        Its path.
    """
    wanted = "|".join(f"*/{name}/*" for name in libraries) or "''"
    path.write_text(_SCRIPT.format(cc=compiler(), wanted=wanted))
    path.chmod(0o755)
    return str(path)
