"""A C compiler for tests of wheels: the kernels of all levels take it 20 s of processor time, and one level 5 s."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cpu_levels import compiler, has_compiler

__all__ = ["quick_compiler"]

# setup.py compiles each library in a folder of its name.
_SCRIPT = """#!/bin/sh
set -e
for word; do
    [ "$before" != -o ] || target=$word
    case "$word" in *.c) source=$word ;; esac
    before=$word
done
case " $* " in *" -c "*)
    # A program that runs once is soonest there so.
    case "$target" in {wanted}) exec {cc} "$@" -Og ;; esac
    # Libraries of the same sources differ in options: each is read once, and with the options of each library one.
    if mkdir "${{target%/*}}/begun" 2> /dev/null || mkdir "{read}/${{source##*/}}" 2> /dev/null; then
        {cc} "$@" -E
    fi
    exec cp "{nothing}" "$target"
esac
case "${{target##*/}}" in {made}) exec cp "{folder}/${{target##*/}}" "$target" ;; esac
exec {cc} "$@"
"""


def quick_compiler(path: Path, *libraries: str, made: Path | None = None) -> str:
    """Write a program for CC, which compiles these libraries; of the others it reads the sources, and compiles nothing.

    Args:
        made: a library that was compiled before; one of its name is a copy of it.

    Returns:
        The program's path.
    """
    read, nothing = path.with_name("sources that were read"), path.with_name("nothing.o")
    read.mkdir()
    if has_compiler():
        subprocess.run([compiler(), "-fPIC", "-x", "c", "-c", os.devnull, "-o", nothing], check=True)
    wanted = "|".join(f"*/{name}/*" for name in libraries) or "''"
    path.write_text(
        _SCRIPT.format(
            cc=compiler(),
            wanted=wanted,
            read=read,
            nothing=nothing,
            made=made.name if made else "''",
            folder=made.parent if made else "",
        )
    )
    path.chmod(0o755)
    return str(path)
