"""The compiled libraries of csrc/: finds them, chooses the level that this CPU runs, and opens it.

`pip install` compiles them where it finds a C compiler. Nothing depends on it: every operator has a way without
them. native.py has the functions.

`LLAMA_KERNELS` names a level of levels.py to use instead of the best one, or `none`: to find out whether a
problem comes from the kernels.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..errors import ConfigError
from .levels import ABI, BASE, Feature, Level, here

__all__ = ["VARIABLE", "base", "best", "features", "open_level", "runnable", "why_missing", "why_not"]

VARIABLE = "LLAMA_KERNELS"
_FOLDER = Path(__file__).parent
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_long,
    "u": ctypes.c_uint64,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
}
# Of each function without "llama_": arguments, and what it returns; "" for nothing.
_Signatures = dict[str, tuple[str, str]]
_BASE: _Signatures = {
    "features": ("", "n"),
    "ranks_bytes": ("nn", "n"),
    "ranks_enter": ("pn", ""),
    "ranks_sum": ("pnnnuuuupnni", "i"),
    "ranks_gather": ("pnnnuuuuppni", "i"),
}
_KERNELS: _Signatures = {
    "pack": ("ppnnnnnn", ""),
    "pack_blocks": ("ppnppnnn", ""),
    "unpack": ("ppnnnnnn", "n"),
    "quantize_k4": ("ppppnn", ""),
    "quantize_int4": ("pppnn", ""),
    "linear_space": ("pnn", "n"),
    "linear": ("ppppnnn", ""),
    "rms_norm": ("pppnnfnn", ""),
    "rotate": ("ppnnnnn", ""),
    "attend_room": ("p", "n"),
    "attend": ("p", ""),
    "layers_formed": ("pnn", "n"),
    "layers_space": ("p", "n"),
    "layers": ("pppnn", ""),
    "rows_space": ("n", "n"),
    "rows_decide": ("pppppppnnn", ""),
    "rows_logs": ("ppppnnn", ""),
}


def _file(name: str) -> Path | None:
    """Where a library lies, if it was compiled."""
    paths = (_FOLDER / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _open(name: str, signatures: _Signatures) -> ctypes.CDLL | None:
    """A library, with the types of its functions; None if it is not there, or of another version of the source."""
    path = _file(name)
    if path is None or not _is_whole(path):
        return None
    try:
        library = ctypes.CDLL(str(path))
        if library.llama_abi() != ABI:
            return None
        for function, (arguments, result) in signatures.items():
            found = getattr(library, f"llama_{function}")
            found.argtypes = [_TYPES[letter] for letter in arguments]
            found.restype = _TYPES[result] if result else None
    except (OSError, AttributeError):
        return None
    return library


def _is_whole(path: Path) -> bool:
    """False for an ELF file that was cut short: the loader maps it as if it were whole, and the process would crash."""
    try:
        with path.open("rb") as file:
            head, size = file.read(64), path.stat().st_size
    except OSError:
        return False
    if head[:4] != b"\x7fELF":
        return True  # the loader tells what is none of its kind
    if len(head) < 64:
        return False
    # The table of sections is the last thing in the file.
    (offset,), (entry, count) = struct.unpack_from("=Q", head, 40), struct.unpack_from("=HH", head, 58)
    return size >= int(offset) + int(entry) * int(count)


@cache
def base() -> ctypes.CDLL | None:
    """csrc/features.c and csrc/ranks.c, which run on any CPU; None if they were not compiled."""
    return _open(BASE, _BASE) if here() else None


def features() -> Feature:
    """What this CPU has; nothing without the compiled file that asks it."""
    library = base()
    return Feature(0 if library is None else library.llama_features())


def runnable() -> list[Level]:
    """The levels that this CPU runs, best first, whether or not they were compiled."""
    found = features()
    return [level for level in here() if level.needs in found]


@cache
def open_level(level: Level) -> ctypes.CDLL | None:
    """The kernels of a level that this CPU runs; None if they were not compiled, or from another source."""
    return _open(level.library, _KERNELS)


@cache
def best() -> Level | None:
    """The level that is used: the best one that this CPU runs and that was compiled.

    Raises:
        ConfigError: LLAMA_KERNELS names a level that does not exist, does not run here, or was not compiled.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "none":  # no file is opened: one of them may be what crashes
        return None
    for level in runnable():
        if wanted in ("", level.name) and open_level(level) is not None:
            return level
    if not wanted:
        return None
    there = [level for level in runnable() if open_level(level) is not None]
    names = ", ".join([level.name for level in there] + ["none"])
    reasons = [f" ({why_not(level)})" for level in here() if level.name == wanted]
    raise ConfigError(f"{VARIABLE} is {wanted!r}{''.join(reasons)}; on this machine it can be: {names}")


def why_not(level: Level) -> str | None:
    """Why a level of this kind of machine cannot be used; None if it can."""
    if base() is None:  # which says what the CPU has
        return _why(BASE)
    if level not in runnable():
        return "this CPU lacks its instructions"
    return _why(level.library) if open_level(level) is None else None


def why_missing() -> str | None:
    """Why this CPU, which could run better kernels, does without; None where it has its best, or has none."""
    if not here() or os.environ.get(VARIABLE):
        return None
    wanted = runnable()
    used = best()
    name = BASE if base() is None else wanted[0].library if wanted and used != wanted[0] else None
    if name is None:
        return None
    return _why(name) if used is None else f"{_why(name)}; those of {used.name} are used"


def _why(name: str) -> str:
    """Why the library of that name is not there, or of no use."""
    path = _file(name)
    if path is not None:
        return f"{path.name} is broken, or of another version of the package"
    try:
        # setup.py writes the compiler's error here.
        text = (_FOLDER / f"{name}.failed.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (
            "nothing was compiled when the package was installed" if base() is None else f"{name} is missing"
        )
    return text.strip().rstrip(".")
