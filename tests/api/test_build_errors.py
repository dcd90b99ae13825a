"""Laws of `Llama.build` on bad input: paths, parameters and disks that fail raise named errors."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from llama import Llama
from llama.checkpoint import open_checkpoint, verify
from llama.checkpoint.layouts import meta as meta_layout
from llama.errors import CheckpointFormatError, ConfigError, LlamaError, TokenizerError
from llama.printable import reason


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), OSError()], ids=repr)
def test_a_folder_that_fails_under_the_reader_is_a_named_error(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(meta_layout, "shard_files", fail)
    with pytest.raises(CheckpointFormatError, match=f"cannot be read: {reason(error)}"):
        open_checkpoint(tiny_checkpoint)
    findings = {each.name: each for each in verify.verify(tiny_checkpoint, quick=True)}
    assert findings["tensors"].status == "fail"
    assert reason(error) in findings["tensors"].why


@pytest.mark.parametrize("text", [5, None, b"x", [], "a\0b", "\ud800", ""], ids=repr)
def test_what_is_no_path_is_a_named_error(tiny_checkpoint: Path, text: Any) -> None:
    with pytest.raises(LlamaError):
        Llama.build(text, None, 64, 1, device="cpu")
    if text is not None:
        with pytest.raises((ConfigError, TokenizerError)):
            Llama.build(tiny_checkpoint, text, 64, 1, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_len": 10**400},
        {"max_batch_size": 10**400},
        {"device": 10**400},
        {"device": float("nan")},
        {"dtype": object()},
        {"model_parallel_size": 10**400},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_parameter_of_build_out_of_range_is_a_named_error(
    tiny_checkpoint: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(LlamaError):
        Llama.build(
            **{"ckpt_dir": tiny_checkpoint, "tokenizer_path": None, "max_seq_len": 64, "max_batch_size": 1}
            | options
        )
