"""csrc/ at levels that this machine has to emulate, and its vectors against plain C at all that it runs."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from compiled_levels import LEVELS
from cpu_levels import compiler, runs

from llama.kernels import compiled
from llama.kernels.levels import COMMON_FLAGS, Level
from llama.kernels.levels import LEVELS as ALL

HERE = Path(__file__).parent
CSRC = Path(compiled.__file__).with_name("csrc")
EVERY = {level.name: level for level in ALL}
CROSS, EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-gcc", "qemu-aarch64", "/usr/aarch64-linux-gnu"
# A CPU for each level of aarch64, as qemu names them; the last has everything.
EMULATED = {"armv8-a": "cortex-a72", "armv8-dotprod": "neoverse-n1", "armv8-bf16": "max"}
WIDE = "x86-64-v3, 16 lanes"


def build(program: str, to: Path, level: Level, command: str, *more: str) -> Path:
    """Compile a check, with all sources that are compiled for levels where it calls them."""
    sources = (
        []
        if program == "check_vectors"
        else [p for p in CSRC.glob("*.c") if p.name not in ("features.c", "ranks.c")]
    )
    flags = [flag for flag in COMMON_FLAGS if flag not in ("-O3", "-fvisibility=hidden")]
    done = subprocess.run(
        [
            *(command, "-O1", *flags, *level.flags, *more, "-Wno-psabi"),
            *(f"-I{CSRC}", str(HERE / f"{program}.c"), *map(str, sources), "-o", str(to), "-lm", "-ldl"),
        ],
        capture_output=True,
        text=True,
        timeout=300,  # a guard against a hang
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return to


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")


@pytest.mark.parametrize("name", LEVELS)
def test_vectors_compute_what_plain_c_does(name: str, tmp_path: Path) -> None:
    """Conversions, fma, e^x, sums, and products of pairs, which are held to the two fma of the fallback."""
    if not runs(name):
        pytest.skip(f"this CPU does not run {name}")
    needs(compiler())
    run(str(build("check_vectors", tmp_path / "check", LEVELS[name], compiler())))


@cache
def emulated(name: str, folder: Path) -> tuple[str, ...]:
    """What the check of a level of aarch64 prints, or that of vectors twice as wide as this CPU's."""
    if name == WIDE:
        return tuple(
            run(str(build("check_level", folder / "wide", EVERY["x86-64-v3"], compiler(), "-DLANES=16")))
        )
    program = build("check_level", folder / name, EVERY[name], CROSS)
    vectors = build("check_vectors", folder / f"{name}-vectors", EVERY[name], CROSS)
    machine = (EMULATOR, "-cpu", EMULATED[name], "-L", ARM_LIBRARIES)
    run(*machine, str(vectors))
    return tuple(run(*machine, str(program)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("levels")


def the_wide_one(folder: Path) -> tuple[str, ...]:
    if platform.machine() not in ("x86_64", "AMD64") or not runs("x86-64-v3"):
        pytest.skip("this CPU does not run x86-64-v3")
    needs(compiler())
    return emulated(WIDE, folder)


def test_vectors_wider_than_the_cpu_keep_the_laws(folder: Path) -> None:
    """16 lanes, as on AVX-512, split by the compiler for AVX2."""
    assert len(the_wide_one(folder)) == 3


@pytest.mark.parametrize("name", EMULATED)
def test_aarch64_keeps_the_laws(name: str, folder: Path) -> None:
    """And gives the same bits as other levels, but for bfloat16 where there are instructions for pairs."""
    needs(CROSS, EMULATOR)
    found, wide = emulated(name, folder), the_wide_one(folder)
    assert found[:2] == wide[:2]
    assert (found[2] == wide[2]) == (name != "armv8-bf16")


# Of each level: instructions that its library must contain, and must not.
INSTRUCTIONS = {
    "x86-64-v3": (r"vfmadd\w+ps .*%ymm", r"%zmm"),
    "x86-64-v4": (r"vfmadd\w+ps .*%zmm", r"vdpbf16ps"),
    "x86-64-v4-bf16": (r"vdpbf16ps .*%zmm", r"vpdpwssd"),
}


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_library_has_the_instructions_of_its_level(name: str) -> None:
    needs("objdump")
    if name not in LEVELS or not runs(name):
        pytest.skip(f"this CPU does not run {name}")
    needs(compiler())
    path = compiled._file(LEVELS[name].library)
    assert path is not None
    listing = subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    wanted, unwanted = INSTRUCTIONS[name]
    assert re.search(wanted, listing)
    assert not re.search(unwanted, listing)


def test_aarch64_has_the_instruction_for_pairs(folder: Path) -> None:
    needs(CROSS, EMULATOR, "aarch64-linux-gnu-objdump")
    emulated("armv8-bf16", folder)
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", str(folder / "armv8-bf16")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "bfdot" in listing
