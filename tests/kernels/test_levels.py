"""csrc/ at levels that this machine has to emulate, and its vectors against plain C at all that it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from compiled_levels import AT, LEVELS, opened
from cpu_levels import CROSS, compiler, has_compiler, has_cross_compiler, has_simde, knows, runs

from llama.kernels import compiled
from llama.kernels.levels import BASE, COMMON_FLAGS, Feature
from llama.kernels.levels import LEVELS as ALL

HERE = Path(__file__).parent
CSRC = Path(compiled.__file__).with_name("csrc")
FLAGS = {level.name: level.flags for level in ALL}
# Commands that run a program on a CPU as qemu names it.
X86, ARM = ("qemu-x86_64", "-cpu"), ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu")
# A CPU for each level of aarch64; the last has everything.
EMULATED = {"armv8-a": "cortex-a72", "armv8-dotprod": "neoverse-n1", "armv8-bf16": "max"}
# 16 lanes, as on AVX-512, that the compiler splits for AVX2; and with AVX512-BF16's instructions out of SIMDe.
WIDE, SIMDE = "16 lanes", "16 lanes with pairs"
SPLIT = {WIDE: ("-DLANES=16",), SIMDE: ("-DLANES=16", "-DBY_SIMDE")}
# Where the CPU runs these, whole levels are checked as they were installed, which is what users run; and nothing is
# compiled for it. What stands for their instructions elsewhere is then checked in vectors only.
INSTALLED = {WIDE: "x86-64-v4", SIMDE: "x86-64-v4-bf16"}
COMMON = ("-Og", "-Wno-psabi", "-D_GNU_SOURCE=")
COMMON = (*COMMON, *(flag for flag in COMMON_FLAGS if flag not in ("-O3", "-fvisibility=hidden")))


def run(*command: str | Path) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


def build(program: str, to: Path, command: str, *flags: str, library: Path | None = None) -> Path:
    """Compile a check, with those of csrc/ that it calls: of a library there is nothing but what it does not export."""
    for_any, quantized = {CSRC / "features.c", CSRC / "ranks.c"}, {HERE / "check_quantized.c"}
    sources: dict[str, set[Path]] = {
        "check_vectors": set(),
        "check_features": for_any,
        "check_level": quantized
        | ({CSRC / "norms.c", CSRC / "team.c"} if library else set(CSRC.glob("*.c")) - for_any),
    }
    files = (HERE / f"{program}.c", *sorted(sources[program]))
    link = (library, f"-Wl,-rpath,{library.parent}") if library else ()
    run(command, *COMMON, *flags, f"-I{CSRC}", *files, *link, "-o", to, "-lm", "-ldl")
    return to


def headers(folder: Path, command: str, *flags: str) -> tuple[str, ...]:
    """Compile the headers once for all files of a check: reading them takes half of the time -> flags to use them."""
    folder.mkdir(exist_ok=True)
    header = folder / "first.h"
    simde = f'#ifdef BY_SIMDE\n#include "{HERE}/bf16_by_simde.h"\n#endif\n'
    header.write_text(f'{simde}#include "vectors.h"\n#include <math.h>\n#include <stdlib.h>\n')
    run(command, *COMMON, *flags, f"-I{CSRC}", "-x", "c-header", header, "-o", f"{header}.gch")
    return ("-include", str(header))


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine")


def needs_compiler(level: str) -> None:
    if not has_compiler():
        pytest.skip("no C compiler")
    if not knows(level):
        pytest.skip(f"the C compiler does not know {level}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("levels")


each_level = pytest.mark.parametrize("name", list(LEVELS) or ["none"])


@each_level
def test_a_level_is_there(name: str) -> None:
    """Or is skipped here, and left out by all tests that run at each level."""
    assert opened(name).level.name == name


# ---- what the vectors compute ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", AT)
def test_vectors_compute_what_plain_c_does(name: str, tmp_path: Path) -> None:
    """Conversions, fma, e^x, sums, and products of pairs, which are held to the two fma of the fallback."""
    opened(name)
    needs_compiler(name)
    run(build("check_vectors", tmp_path / "check", compiler(), *FLAGS[name]))


# ---- whole levels ----------------------------------------------------------------------------------------


def why_not(name: str) -> str | None:
    """Why this machine cannot run a level of EMULATED or SPLIT: a reason to skip."""
    if name in EMULATED:
        if not has_cross_compiler():
            return "no cross compiler for aarch64"
        return None if shutil.which(ARM[0]) else f"{ARM[0]} is not on this machine"
    if "x86-64-v3" not in LEVELS:
        return "kernels are compiled for x86-64 and aarch64 only" if not LEVELS else "this CPU is no x86-64"
    if not runs("x86-64-v3") and shutil.which(X86[0]) is None:
        return "this CPU does not run x86-64-v3"
    if not has_compiler():
        return "no C compiler"
    return "SIMDe is not on this machine" if name == SIMDE and not has_simde() else None


def installed(name: str) -> Path | None:
    """The library of a level of INSTALLED that this CPU runs."""
    level = INSTALLED.get(name)
    return compiled._file(LEVELS[level].library) if level in LEVELS and runs(level) else None


@cache
def found(name: str, folder: Path) -> tuple[str, ...]:
    """A number for the results of each dtype, one for int8 caches and one for quantized weights. The check of a level
    fails where a law does not hold."""
    if name in EMULATED:
        command, flags, machine = CROSS, FLAGS[name], (*ARM, EMULATED[name])
    else:
        command, flags = compiler(), (*FLAGS["x86-64-v3"], *SPLIT[name])
        machine = () if runs("x86-64-v3") else (*X86, "Haswell")
    run(*machine, build("check_vectors", folder / f"{name} vectors", command, *flags))
    if (library := installed(name)) is not None:
        flags = FLAGS[INSTALLED[name]]
        return tuple(run(build("check_level", folder / name, command, *flags, library=library)))
    flags = (*flags, *headers(folder / f"{name} headers", command, *flags))
    return tuple(run(*machine, build("check_level", folder / name, command, *flags)))


@pytest.mark.parametrize("name", [*SPLIT, *EMULATED])
def test_a_level_that_no_cpu_here_has_keeps_the_laws(name: str, folder: Path) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    assert len(found(name, folder)) == 5


@pytest.mark.parametrize("name", [*SPLIT, *EMULATED])
def test_levels_give_the_same_bits(name: str, folder: Path) -> None:
    """But for bfloat16 where there are instructions for pairs."""
    first = next((each for each in (*SPLIT, *EMULATED) if why_not(each) is None), name)
    if reason := why_not(name):
        pytest.skip(reason)
    one, other = found(first, folder), found(name, folder)
    assert (*one[:2], *one[3:]) == (*other[:2], *other[3:])
    assert (one[2] == other[2]) == (name not in (SIMDE, "armv8-bf16"))


# ---- instructions ----------------------------------------------------------------------------------------


def listing(command: str, path: Path) -> str:
    done = subprocess.run([command, "-d", str(path)], capture_output=True, text=True, check=True)
    return done.stdout


# Of each level: instructions that its library must contain, of floats and of integers, and must not.
INSTRUCTIONS = {
    "x86-64-v3": ((r"vfmadd\w+ps .*%ymm", r"vpmaddubsw .*%ymm", r"vpmaddwd .*%ymm"), r"%zmm|vpdpbusd"),
    "x86-64-v3-vnni": ((r"vfmadd\w+ps .*%ymm", r"vpdpbusd .*%ymm"), r"%zmm"),
    "x86-64-v4": (
        (r"vfmadd\w+ps .*%zmm", r"vpmaddubsw .*%zmm", r"vpmaddwd .*%zmm"),
        r"vdpbf16ps|vpdpbusd",
    ),
    "x86-64-v4-vnni": ((r"vfmadd\w+ps .*%zmm", r"vpdpbusd .*%zmm"), r"vdpbf16ps"),
    "x86-64-v4-bf16": ((r"vdpbf16ps .*%zmm", r"vpdpbusd .*%zmm"), r"tdpbf16ps"),
    "armv8-a": ((r"fmla\s", r"smull2?\s", r"sadalp\s"), r"bfdot|[us]dot\s"),
    "armv8-dotprod": ((r"fmla\s", r"\ssdot\s"), r"bfdot|usdot"),
    "armv8-bf16": ((r"bfdot\s", r"usdot\s"), r"\bz\d+\.[hs]"),
}


@each_level
def test_a_library_has_the_instructions_of_its_level(name: str) -> None:
    """Also one that this CPU does not run."""
    needs("objdump")
    if name not in LEVELS:
        pytest.skip("kernels are compiled for x86-64 and aarch64 only")
    needs_compiler(name)
    path = compiled._file(LEVELS[name].library)
    assert path is not None, f"the kernels of {name} were not built"
    wanted, unwanted = INSTRUCTIONS[name]
    code = listing("objdump", path)
    assert all(re.search(each, code) for each in wanted)
    assert not re.search(unwanted, code)


@pytest.mark.parametrize("name", EMULATED)
def test_a_cross_compiled_level_has_its_instructions(name: str, folder: Path) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    needs("aarch64-linux-gnu-objdump")
    found(name, folder)
    wanted, unwanted = INSTRUCTIONS[name]
    code = listing("aarch64-linux-gnu-objdump", folder / name)
    assert all(re.search(each, code) for each in wanted)
    assert not re.search(unwanted, code)


def test_the_library_that_tells_cpus_apart_runs_on_any(folder: Path) -> None:
    """On x86-64 it uses no register that came later, so that an old CPU gets an answer and not an end."""
    needs("objdump")
    if not LEVELS:
        pytest.skip("kernels are compiled for x86-64 and aarch64 only")
    if not has_compiler():
        pytest.skip("no C compiler")
    path = compiled._file(BASE)
    assert path is not None
    assert not re.search(r"%[yz]mm|\sv\w+ps\s", listing("objdump", path))


_DOTS = Feature.NEON | Feature.DOTPROD


@pytest.mark.parametrize(
    ("cpu", "features"),
    [
        ("Nehalem", Feature(0)),
        ("SandyBridge", Feature(0)),  # AVX, no AVX2
        ("Haswell", Feature.AVX2),
        ("cortex-a53", Feature.NEON),
        ("cortex-a72", Feature.NEON),
        ("neoverse-n1", _DOTS),
        ("max", _DOTS | Feature.BF16_I8MM),
    ],
)
def test_cpus_are_told_apart(cpu: str, features: Feature, folder: Path) -> None:
    """By what they have; qemu knows no AVX-512."""
    if cpu[0].isupper():
        command, machine = compiler(), X86
        if "x86-64-v3" not in LEVELS:
            pytest.skip(
                "this CPU is no x86-64" if LEVELS else "kernels are compiled for x86-64 and aarch64 only"
            )
        if not has_compiler():
            pytest.skip("no C compiler")
    else:
        command, machine = CROSS, ARM
        if not has_cross_compiler():
            pytest.skip("no cross compiler for aarch64")
    needs(machine[0])
    program = folder / f"features of {machine[0]}"
    if not program.exists():
        build("check_features", program, command)
    (bits,) = run(*machine, cpu, program)
    assert Feature(int(bits)) == features
