"""Builds the compiled kernels. pyproject.toml describes the package."""

import copy
import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
PACKAGE = "llama.kernels"
SOURCES = "llama/kernels/csrc"  # relative to this file, as setuptools wants them
LEVELS = SimpleNamespace(**runpy.run_path(str(HERE / "llama/kernels/levels.py")))
if sys.platform == "darwin":
    # Pythons for two kinds of CPU at once would compile each level's instructions for both.
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
# Sources of the library for any CPU; the others are compiled for each level. abi.c is in all of them.
FOR_ANY_CPU = {"features.c", "ranks.c"}


def kernels() -> list[Extension]:
    """A library for any CPU, and one for each level of this kind of machine.

    Without a compiler the package installs, and runs, without them; with one that does not know a level's
    instructions, without that level.
    """
    levels = LEVELS.here()
    if not levels:
        return []
    files = {path.name for path in (HERE / SOURCES).glob("*.c")}
    others = files - FOR_ANY_CPU
    made = [_extension(LEVELS.BASE, {*FOR_ANY_CPU, "abi.c"}, ())]
    return made + [_extension(level.library, others, level.flags) for level in levels]


def _extension(name: str, files: set[str], flags: tuple[str, ...]) -> Extension:
    return Extension(
        f"{PACKAGE}.{name}",
        sorted(f"{SOURCES}/{name}" for name in files),
        depends=[
            "llama/kernels/levels.py",
            *sorted(f"{SOURCES}/{path.name}" for path in (HERE / SOURCES).glob("*.h")),
        ],
        extra_compile_args=[*LEVELS.COMMON_FLAGS, *flags],
        libraries=["m", "dl"] if sys.platform == "linux" else [],
        optional=True,
    )


class BuildKernels(build_ext):
    """Writes the reason beside the library where one could not be compiled; llama/kernels/compiled.py reports it.

    pip hides what the build of an optional extension printed.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        folders = [Path(self.get_ext_fullpath(ext.name)).parent]
        if self.editable_mode or "--inplace" in sys.argv:
            folders.append(HERE.joinpath(*ext.name.split(".")[:-1]))
        notes = [folder / f"{name}.failed.txt" for folder in folders]
        for note in notes:
            note.unlink(missing_ok=True)
        # Objects of one source and different flags lie in different folders.
        one = copy.copy(self)
        one.build_temp = str(Path(self.build_temp) / name)
        try:
            build_ext.build_extension(one, ext)
        except Exception as error:
            for note in notes:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{_reason(error)}\n", encoding="utf-8")
            raise  # setuptools goes on: the extension is optional


def _reason(error: BaseException) -> str:
    """One short line: setuptools quotes the whole command, of some 600 letters."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, subprocess.CalledProcessError):
            files = [str(part) for part in cause.cmd if str(part).endswith(".c")]
            failed = f"{cause.cmd[0]} failed with exit status {cause.returncode}"
            return f"{failed} on {files[0]}" if files else failed
        if isinstance(cause, OSError) and cause.filename:
            return f"{cause.filename}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return str(error)


setup(
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels},
)
