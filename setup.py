"""Builds the compiled kernels. pyproject.toml describes the package."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
EXTENSION = "llama.kernels._cpu"
SOURCES = "llama/kernels/csrc"  # relative to this file, as setuptools wants them
NOTE = f"{EXTENSION.rpartition('.')[2]}.failed.txt"


def kernels() -> list[Extension]:
    """Kernels for CPUs with AVX512-BF16. Without a compiler the package installs, and runs, without them.

    The OpenMP library is not linked: torch's own is used, see llama/kernels/native.py.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    extension = Extension(
        EXTENSION,
        sorted(f"{SOURCES}/{path.name}" for path in (HERE / SOURCES).glob("*.c")),
        depends=sorted(f"{SOURCES}/{path.name}" for path in (HERE / SOURCES).glob("*.h")),
        extra_compile_args=["-O3", "-fopenmp"],
        optional=True,
    )
    return [extension]


class BuildKernels(build_ext):
    """Writes the reason beside the extension where it could not be compiled; llama/kernels/native.py reports it.

    pip hides what the build of an optional extension printed.
    """

    def build_extension(self, ext: Extension) -> None:
        folders = [Path(self.get_ext_fullpath(ext.name)).parent]
        if self.editable_mode or "--inplace" in sys.argv:
            folders.append(HERE.joinpath(*ext.name.split(".")[:-1]))
        notes = [folder / NOTE for folder in folders]
        for note in notes:
            note.unlink(missing_ok=True)
        try:
            super().build_extension(ext)
        except Exception as error:
            for note in notes:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"{error}\n", encoding="utf-8")
            raise  # setuptools goes on: the extension is optional


setup(
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels},
)
