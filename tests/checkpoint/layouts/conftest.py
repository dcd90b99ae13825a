"""Folders in Meta's layout, and what refuses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import loading as builder
from llama.errors import (
    LlamaError,
)
from llama.loading import build

# 8 heads on up to 8 ranks: every dimension divides by 8. One shape per number of key/value heads.
WIDE: dict[str, Any] = {**SHAPE, "multiple_of": 8, "n_layers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sound shards for the tiny tokenizer."""
    weights = random_weights(WIDE, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "model", WIDE, weights, tiny_model_path(), 2)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Build must raise the error, with all the words in its text, and allocate nothing before it."""

    def refuse(folder: Path, kind: type[LlamaError], *words: object, **options: Any) -> str:
        def reached(*_: object, **__: object) -> Any:
            raise AssertionError("something was allocated, or a group joined, before the files were checked")

        # torch.empty is not replaced: torch.load itself may use it.
        for name in ("Transformer", "load_weights", "plan_cache", "join"):
            monkeypatch.setattr(builder, name, reached)
        with pytest.raises(LlamaError) as caught:
            build(
                folder,
                options.get("tokenizer"),
                64,
                2,
                options.get("size"),
                "cpu",
                options.get("dtype", "auto"),
            )
        monkeypatch.undo()
        text = str(caught.value)
        assert type(caught.value) is kind, f"{caught.value!r}"
        for word in words:
            assert str(word) in text, f"{word!r} is not in {text!r}"
        assert "\n" not in text
        return text

    return refuse
