"""Laws of the structure: which room may import which, how large a file may be, and the one way of data through them.

docs/architecture.md draws what these hold; the lists of its rooms and of a call's way are read from there.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import FrameType

import pytest
import torch
from ranks import ROOT
from tiny_llama import tiny_llama

from llama.kernels import table
from llama.serving.http.app import DOORS

PACKAGE = ROOT / "llama"
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

# Rooms from the ground up, each with all rooms that it imports. A room imports only rooms above it in this list, so
# there is no circle; what is listed and not imported is an error too, so that the table stays true.
ROOMS: dict[str, set[str]] = {
    "base": set(),
    "text": {"base"},
    "kernels": {"base"},
    "distributed": {"base", "kernels"},
    "sizing": {"base", "kernels", "distributed"},
    "model": {"base", "kernels", "distributed", "sizing"},
    "checkpoint": {"base", "text", "kernels", "distributed", "sizing", "model"},
    "engine": {"base", "text", "kernels", "distributed", "sizing", "model"},
    "serving": {"base", "distributed", "engine"},
    "api": {"base", "text", "distributed", "engine"},
    "loading": {"base", "text", "kernels", "distributed", "sizing", "model", "checkpoint"},
    "generation": {"base", "text", "distributed", "sizing", "model", "engine", "serving", "api", "loading"},
    "http": {"base", "text", "sizing", "engine", "serving", "api", "generation"},
    "terminal": {"base", "text", "distributed", "engine", "serving", "api", "generation", "http"},
    "sandbox": {"base"},
    "evaluation": {
        *("base", "text", "distributed", "sizing", "checkpoint", "engine", "serving", "api", "generation"),
        *("terminal", "sandbox"),
    },
    "cli": {
        *("base", "text", "kernels", "sizing", "checkpoint", "serving", "generation", "http", "terminal"),
        "evaluation",
    },
}
# Files on the package's top floor that share a room; the others are rooms by their own name.
TOP = {
    **dict.fromkeys(("errors", "printable", "values", "sampling"), "base"),
    **dict.fromkeys(("tokenizer", "detokenizer", "prompts", "chat_templates"), "text"),
    **dict.fromkeys(("model", "kv_cache"), "model"),
}
# Rooms that are folders within another room's.
WITHIN = ("serving/http/", "evaluation/sandbox/")
# Imports upwards, within a function, of what nothing but a caller's own code asks for.
LAZY = {("model", "api.compat")}  # the reference keeps three small functions in llama.model
# Pieces of the engine that have to stay testable, and readable, without a tensor.
WITHOUT_TORCH = (
    "prompts",
    "tokenizer",
    "detokenizer",
    "sampling",
    "errors",
    "values",
    "engine.scheduler",
    "engine.block_pool",
    "engine.cache_manager",
    "engine.prefix_cache",
    "engine.request",
    "engine.speculation",
    "serving.protocol",
)
MOST_LINES = 400
# One script that people fetch and run by itself, so it cannot be split.
LONG = {"download.sh"}


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name below `llama` -> its syntax tree; a package goes by its own name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def room(module: str) -> str:
    for folder in WITHIN:
        name = folder.strip("/").replace("/", ".")
        if f"{module}.".startswith(f"{name}."):
            return name.rpartition(".")[2]
    top = module.partition(".")[0]
    return TOP.get(top, top)


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Modules of this package that the import statements among these nodes name."""
    is_package = (PACKAGE / module.replace(".", "/")).is_dir()
    here = module.split(".") if is_package and module else module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module or "").split(".")
            base = [part for part in base if part]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in modules() else ".".join(base)


def test_rooms_import_only_what_the_table_says() -> None:
    """All imports count, those within functions and for annotations only included."""
    found: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module, tree in modules().items():
        if module in ("", "__main__"):  # the package's own door, which leads to what is asked for
            continue
        for target in imports(module, ast.walk(tree)):
            if target and room(target) != room(module) and (module, target) not in LAZY:
                found[room(module)].add(room(target))
    assert found == ROOMS


def test_no_room_imports_one_above_it() -> None:
    order = list(ROOMS)
    upwards = [
        (name, other)
        for name, others in ROOMS.items()
        for other in others
        if order.index(other) >= order.index(name)
    ]
    assert upwards == []


def test_no_door_of_the_server_imports_another() -> None:
    """What two protocols need is in a file of their room, so that each can be changed or removed alone."""
    doors = [door.__name__.removeprefix("llama.") for door in DOORS]
    owners = {name: door for name in modules() for door in doors if f"{name}.".startswith(f"{door}.")}
    assert set(owners.values()) == set(doors)
    arrows = [
        (module, target)
        for module, door in owners.items()
        for target in imports(module, ast.walk(modules()[module]))
        if owners.get(target, door) != door
    ]
    assert arrows == []


def test_no_modules_import_each_other() -> None:
    """Also within a room, and for annotations only."""
    arrows = {name: set(imports(name, ast.walk(tree))) - {name, ""} for name, tree in modules().items()}
    for module, target in LAZY:
        arrows[module].discard(target)
    # A package's own __init__ re-exports its files, and they do not import it.
    done: set[str] = set()
    while ready := [name for name, targets in arrows.items() if name not in done and targets <= done]:
        done.update(ready)
    assert sorted(set(arrows) - done) == [], "these, or some of them, form a circle"


_IMPORT = """
import importlib, sys
sys.modules["torch"] = sys.modules["fairscale"] = None  # an import of these raises
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def test_what_claims_to_need_no_torch_imports_without_it() -> None:
    """Modules whose docstring says "Never imports torch", and the text and scheduling ones at least."""
    claims = [
        name for name, tree in modules().items() if "Never imports torch" in (ast.get_docstring(tree) or "")
    ]
    names = sorted({f"llama.{name}" for name in (*claims, *WITHOUT_TORCH)})
    assert len(names) > 20
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, *names], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def tracked() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        paths = [ROOT / name for name in done.stdout.splitlines()]
    else:  # an unpacked source distribution
        folders = ("llama", "tests", "benchmarks", "tools")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in paths if path.is_file()]


def test_no_file_is_too_long() -> None:
    code = [path for path in tracked() if path.suffix in (".py", ".c", ".h", ".sh")]
    assert len(code) > 100
    lengths = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in code}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES}.keys() <= LONG, {
        name: length for name, length in lengths.items() if length > MOST_LINES
    }


def test_the_map_names_every_room_and_nothing_else() -> None:
    """The folders and files that docs/architecture.md lists are those in llama/."""
    table = ARCHITECTURE.partition("## Rooms")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([\w./]+)`", cell) if name not in WITHIN]
    there = {
        path.name + "/" * path.is_dir()
        for path in PACKAGE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and not path.name.startswith("__")
    }
    assert len(named) == len(set(named))
    assert set(named) == there


def test_the_map_says_what_every_room_imports() -> None:
    """The last column of docs/architecture.md's table is the table above."""
    rows = ARCHITECTURE.partition("## Rooms")[2].partition("\n## ")[0].splitlines()
    drawn = {}
    for _, files, _, imported, _ in (row.split("|") for row in rows if row.startswith("| `")):
        first = re.findall(r"`([\w/]+)", files)[0].strip("/").replace("/", ".")
        drawn[room(first)] = {name.strip() for name in imported.split(",") if name.strip()}
    assert drawn == {name: others - {"base"} for name, others in ROOMS.items()}
    assert list(drawn) == list(ROOMS)


def way_of_a_call() -> list[tuple[str, str]]:
    """(file, function) from the public call to the kernel, as docs/architecture.md lists them."""
    block = ARCHITECTURE.partition("## One way through")[2].partition("```\n")[2].partition("```")[0]
    return re.findall(r"^(\S+\.py)\s+(\S+)", block, re.M)


def frames(frame: FrameType | None) -> Iterator[tuple[str, str]]:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            yield path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name
        frame = frame.f_back


def test_a_call_takes_the_way_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten steps at most from `text_completion` to the matrix product, four of them before `Transformer`."""
    monkeypatch.setitem(table.ROWS, "linear", table.ROWS["linear"][-1:])
    made = tiny_llama()
    seen: list[list[tuple[str, str]]] = []
    product = torch.nn.functional.linear

    def spy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.append([*frames(sys._getframe())][::-1])
        return product(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    made.text_completion(["def"], temperature=0, max_gen_len=1)
    drawn = way_of_a_call()
    assert seen[0] == [(file, name.rpartition(".")[2]) for file, name in drawn]
    inside = [file for file, _ in drawn]
    assert len(drawn) <= 10
    assert inside.index("model.py") - 1 <= 4


EXTRAS = """
import sys
import torch, fairscale.nn.model_parallel, sentencepiece, numpy, fire
before = set(sys.modules)
import llama, llama.cli, llama.serving
from llama import Llama
print("\\n".join(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_the_package_loads_no_extra() -> None:
    """`llama` itself loads not even the core; all of its rooms together load nothing but the core."""
    required = metadata.requires("codellama-runtime") or []
    names = {
        re.split(r"[\[<>=!~; ]", each)[0].replace("-", "_").lower() for each in required if "extra ==" in each
    }
    assert "transformers" in names
    done = subprocess.run(
        [sys.executable, "-c", EXTRAS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "llama" in loaded
    third_party = {
        name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")
    }
    assert third_party == {"llama"}, "only the standard library and this package"
    assert not third_party & names


def test_the_package_door_loads_nothing() -> None:
    code = "import sys; import llama; print(*[name for name in sys.modules if name.startswith(('llama', 'torch'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["llama"]
