"""The sdist and the wheel: what is in them, and that they install and run where the checkout is not.

No network: the build uses this environment's setuptools, and the new environment borrows this one's dependencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
import torch
from cpu_levels import has_compiler, knows
from packaging.requirements import Requirement
from quick_compiler import quick_compiler

import llama
from llama.kernels import compiled
from llama.kernels.levels import BASE, here

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "CodeLlama-tiny"
# What git ignores, and what is too large to copy.
LEFT_OUT = shutil.ignore_patterns(
    *(
        ".git",
        ".venv*",
        "node_modules",
        ".*_cache",
        ".hypothesis",
        "__pycache__",
        "*.egg-info",
        "build",
        "dist",
        "*.so",
    ),
    *("*.failed.txt", "CodeLlama-*"),
)
# The library for any CPU, and every level of this kind of machine, also those that this CPU does not run.
LIBRARIES = [BASE, *(level.library for level in here())]
COMPILED = {BASE, *(level.library for level in here() if knows(level.name))} if has_compiler() else set()
pytestmark = pytest.mark.slow

RUN = f"""
import importlib, pathlib, pkgutil, runpy, sys
import llama
home = pathlib.Path(llama.__file__).resolve().parent
assert home.is_relative_to(pathlib.Path(sys.prefix).resolve()), home
for module in pkgutil.walk_packages(llama.__path__, "llama."):
    if module.name != "llama.__main__" and not module.name.endswith({EXTENSION_SUFFIXES[0]!r}):
        found = importlib.util.find_spec(module.name)
        assert pathlib.Path(found.origin).is_relative_to(home), found
with llama.Llama.build({os.fspath(TINY)!r}, max_seq_len=128, device="cpu") as model:
    result = model.text_completion(["import os\\nimport "], temperature=0, max_gen_len=8)[0]
assert result["finish_reason"] in ("stop", "length"), result
print("completed:", repr(result["generation"]))
# The program, in this process: another would import torch once more.
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Built(NamedTuple):
    """A source tree like a fresh clone, and what was built: the wheel from the sdist, as pip does it."""

    source: Path
    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command printed; its whole output in the failure if it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env={**clean, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,  # a guard against a hang
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built_wheel(source: Path, folder: Path, **environment: str) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", folder, source, cwd=folder.parent, **environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copied(folder: Path) -> Path:
    """The checkout as a fresh clone has it, but for the checkpoint."""
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    return folder / "source"


def build(folder: Path) -> Built:
    source = copied(folder)
    program = "from setuptools import build_meta; print(build_meta.build_sdist('../sdist'))"
    run(sys.executable, "-c", program, cwd=source)
    (sdist,) = (folder / "sdist").iterdir()
    # `make` has compiled all levels from these sources: the one that runs here is taken from there.
    level = compiled.best()
    made = None if level is None else ROOT / "llama" / "kernels" / f"{level.library}{EXTENSION_SUFFIXES[0]}"
    compiler = quick_compiler(folder / "cc", BASE, made=made)
    return Built(source, sdist, built_wheel(sdist, folder / "wheel", CC=compiler))


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel and this one's dependencies -> its folder of programs.

    This one's install of the checkout is not seen there: Python obeys no .pth file of a folder that a .pth file names.
    """
    folder.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--no-compile", wheel, cwd=folder)
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    dependencies = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (Path(place) / "dependencies.pth").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    return folder / "env" / "bin"


def modules(source: Path) -> set[str]:
    return {path.relative_to(source).as_posix() for path in (source / "llama").rglob("*.py")}


def data(source: Path) -> set[str]:
    """What the package needs beside its modules: the types' marker, and the playground's page."""
    page = source / "llama" / "serving" / "http" / "playground" / "static"
    found = {path.relative_to(source).as_posix() for path in page.iterdir()}
    assert len(found) > 10
    return {"llama/py.typed", *found}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(archive.read(name))


def check_sdist(built: Built) -> None:
    """It holds what builds the package, and what one reads."""
    with tarfile.open(built.sdist) as archive:
        names = {PurePosixPath(each.name) for each in archive.getmembers() if each.isfile()}
    (top,) = {name.parts[0] for name in names}
    assert top == f"codellama_runtime-{llama.__version__}"
    held = {name.relative_to(top).as_posix() for name in names}
    sources = {
        path.relative_to(built.source).as_posix()
        for path in (built.source / "llama").rglob("*")
        if path.suffix in (".c", ".h")
    }
    assert len(sources) > 3
    with tarfile.open(built.sdist) as archive:
        for name in (
            *sources,
            "setup.py",
            "llama/kernels/levels.py",
        ):  # or it is another library that they make
            there = archive.extractfile(f"{top}/{name}")
            assert there is not None
            assert there.read() == (ROOT / name).read_bytes(), name
    docs = {f"docs/{path.name}" for path in (built.source / "docs").glob("*.md")}
    texts = ("LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
    build = ("pyproject.toml", "setup.py", "requirements.txt")
    assert {*modules(built.source), *sources, *data(built.source), *docs, *texts, *build} <= held
    assert "examples/codellama.ipynb" in held
    assert {name.partition("/")[0] for name in held} & {"tests", "benchmarks", "CodeLlama-tiny"} == set()


def check_wheel(built: Built) -> None:
    """It holds the package, its licence, and nothing else."""
    with zipfile.ZipFile(built.wheel) as archive:
        held = set(archive.namelist())
    package = {name for name in held if ".dist-info/" not in name}
    libraries = {f"llama/kernels/{name}{EXTENSION_SUFFIXES[0]}" for name in COMPILED}
    reasons = {f"llama/kernels/{name}.failed.txt" for name in LIBRARIES if name not in COMPILED}
    assert package == {*modules(built.source), *data(built.source), *libraries, *reasons}
    info = f"codellama_runtime-{llama.__version__}.dist-info"
    for name in ("LICENSE", "NOTICE"):
        assert f"{info}/licenses/{name}" in held


def check_metadata(about: Message) -> None:
    assert about["Name"] == "codellama-runtime"
    assert about["Version"] == llama.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert about.get_payload().startswith("# ")
    asked = [Requirement(each) for each in about.get_all("Requires-Dist", [])]
    core = {each.name for each in asked if each.marker is None}
    assert core == {"torch", "fairscale", "sentencepiece", "numpy", "fire"}
    extras = set(about.get_all("Provides-Extra", []))
    assert {"bench", "dev"} <= extras
    assert core.isdisjoint(each.name for each in asked if each.marker is not None)


def test_sdist_and_wheel_are_complete_and_run_in_an_empty_environment(tmp_path: Path) -> None:
    """One test, so that one process builds them."""
    built = build(tmp_path)
    check_sdist(built)
    check_wheel(built)
    check_metadata(metadata(built.wheel))
    programs = install(built.wheel, tmp_path / "installed")
    assert "VERB" in run(programs / "codellama", "--help", cwd=tmp_path)
    said = run(programs / "python", "-c", RUN, programs / "codellama", "info", TINY, cwd=tmp_path)
    assert "completed: '" in said
    weights = torch.load(TINY / "consolidated.00.pth", weights_only=True).values()
    assert f"{sum(each.numel() for each in weights) / 1e6:.3g}M in bfloat16" in said


def test_a_wheel_from_the_checkout_without_a_compiler_holds_the_modules_and_the_reason(
    tmp_path: Path,
) -> None:
    source = copied(tmp_path)
    wheel = built_wheel(source, tmp_path / "wheel", CC="no-such-compiler")
    with zipfile.ZipFile(wheel) as archive:
        package = {name for name in archive.namelist() if ".dist-info/" not in name}
        reasons = {f"llama/kernels/{name}.failed.txt" for name in LIBRARIES}
        assert package == {*modules(source), *data(source), *reasons}
        for each in reasons:
            assert "no-such-compiler" in archive.read(each).decode()
