"""Laws of `info --kernels`: it needs no folder, names the level in use, and knows a checkpoint's shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_levels import has_compiler
from tiny_models import random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.kernels import compiled, levels, native
from llama.kernels.quantized import FORMATS
from llama.kernels.table import ROWS


def rows(out: str) -> dict[tuple[str, str], list[str]]:
    """(operator, format) -> row taken, reasons; of the CPU."""
    lines = [line.split(maxsplit=4) for line in out.partition("\n\n")[2].splitlines()[1:]]
    return {(operator, form): rest for operator, form, device, *rest in lines if device == "cpu"}


def test_without_a_folder_it_tells_of_every_operator_and_dtype(run: Any) -> None:
    code, out, err = run("info", "--kernels")
    assert (code, err) == (0, "")
    found = rows(out)
    assert {operator for operator, _ in found} == ROWS.keys()
    assert {form for operator, form in found if operator == "linear"} == {
        *("float32", "float16", "bfloat16"),
        *FORMATS,
    }
    kernels = native.kernels()
    level = "none" if kernels is None else kernels.level.name
    assert f"level           {level}" in out.splitlines()[1]
    if kernels is not None:
        assert found["linear", "bfloat16"] == found["linear", "k4"] == ["csrc"]


def test_with_a_folder_it_is_of_its_shapes_and_dtype(run: Any, tmp_path: Path) -> None:
    """Heads of 24 numbers, which are no whole vectors."""
    params = {"dim": 96, "n_layers": 1, "n_heads": 4, "multiple_of": 16}
    weights = {name: value.half() for name, value in random_weights(params, 400).items()}
    folder = save_checkpoint(tmp_path, params, weights, tiny_model_path(), 1, torch.float16)
    code, out, _ = run("info", folder, "--kernels")
    assert code == 0
    found = rows(out)
    assert {form for operator, form in found if operator not in ("draw", "scores", "attention")} == {
        "float16"
    }
    # Caches have the checkpoint's dtype, or are int8.
    assert [form for operator, form in found if operator == "attention"] == ["float16", "int8"]
    assert found["attention", "float16"][0] == found["attention", "int8"][0] == "torch"
    if native.kernels() is not None:
        assert "heads of 24 numbers" in found["layers", "float16"][1]


def test_the_variable_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        for wanted in ("none", *(level.name for level in compiled.runnable() if compiled.open_level(level))):
            monkeypatch.setenv(compiled.VARIABLE, wanted)
            compiled.best.cache_clear()
            code, out, _ = run("info", "--kernels")
            assert code == 0
            assert f"level           {wanted}, as LLAMA_KERNELS says" in out
        monkeypatch.setenv(compiled.VARIABLE, "avx9")
        compiled.best.cache_clear()
        code, _, err = run("info", "--kernels")
        assert code == 1
        assert "LLAMA_KERNELS is 'avx9'" in err
    finally:
        monkeypatch.undo()
        compiled.best.cache_clear()


@pytest.mark.skipif(not levels.here(), reason="kernels are compiled for x86-64 and aarch64 only")
def test_it_says_why_nothing_was_compiled(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that asks the CPU is missing too, so no level is said to be beyond it."""
    names = ", ".join(level.name for level in levels.here())
    (tmp_path / f"{levels.BASE}.failed.txt").write_text("cc: No such file or directory\n")
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    cached = (compiled.base, compiled.open_level, compiled.best)
    try:
        for each in cached:
            each.cache_clear()
        code, out, _ = run("info", "--kernels")
        assert code == 0
        assert f"not compiled    {names}: cc: No such file or directory" in out.splitlines()
        assert "beyond" not in out
        monkeypatch.setenv(compiled.VARIABLE, levels.here()[-1].name)
        compiled.best.cache_clear()
        _, _, err = run("info", "--kernels")
        assert "(cc: No such file or directory); on this machine it can be: none" in err
    finally:
        monkeypatch.undo()
        for each in cached:
            each.cache_clear()


@pytest.mark.skipif(not levels.here() or not has_compiler(), reason="no C compiler")
def test_each_level_that_is_missing_has_its_own_reason(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a lower one than the one in use, and with LLAMA_KERNELS set."""
    *_, worst = [level for level in compiled.runnable() if compiled.open_level(level)]
    (tmp_path / f"{worst.library}.failed.txt").write_text("unknown option\n")
    opened = compiled.open_level
    compiled.best()  # so that it stays what it is
    monkeypatch.setattr(compiled, "_FOLDER", tmp_path)
    monkeypatch.setattr(compiled, "open_level", lambda level: None if level == worst else opened(level))
    monkeypatch.setenv(compiled.VARIABLE, "none")
    code, out, _ = run("info", "--kernels")
    assert code == 0
    assert f"not compiled    {worst.name}: unknown option" in out.splitlines()
