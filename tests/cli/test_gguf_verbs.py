"""Laws of the verbs on a GGUF file: each takes it where it takes a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import BLOCKED, name_of, random_blocks, save_gguf, whole
from quantized_folders import SCHEMES, save_quantized
from tiny_models import random_weights
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama.checkpoint import open_checkpoint, tokenizer_of
from llama.cli.verify import _bytes_to_read

VOCAB = tiny_tokenizer().n_words
WEIGHTS = random_weights({**BLOCKED, "n_layers": 1}, VOCAB)
WO = "layers.0.attention.wo.weight"


def saved(place: Path, **options: Any) -> Path:
    """A model mostly in Q4_K, as Q4_K_M is: the output and one more in Q6_K."""
    finer = {"output.weight", "layers.0.feed_forward.w2.weight"}
    return save_gguf(
        place / "tiny.Q4_K_M.gguf",
        {**BLOCKED, "n_layers": 1},
        WEIGHTS,
        tiny_tokenizer(),
        lambda name: "Q6_K" if name in finer else "Q4_K",
        change=lambda writer: writer.add_file_type(15),
        **options,
    )


def fields(text: str) -> dict[str, str]:
    return {line[:14].strip(): line[16:] for line in text.splitlines()}


def statuses(text: str) -> dict[str, str]:
    return {line[6:21].strip(): line[:4] for line in text.splitlines()}


def test_info_tells_types_and_bytes(run: Any, tmp_path: Path) -> None:
    path = saved(tmp_path)
    code, out, err = run("info", path)
    assert (code, err) == (0, "")
    found = fields(out)
    assert found["layout"] == f"GGUF, 1 weight file, {path.stat().st_size / (1 << 20):.1f} MiB"
    assert found["parameters"].endswith(" in Q4_K_M")
    assert found["types"].startswith("Q4_K ")
    assert ", Q6_K 0.2 MiB, F32 0.0 MiB" in found["types"]
    assert found["note"].startswith("2 of 9 matrices, in Q6_K, become int8: ")
    assert found["context"] == "16,384 tokens in training, as the file says (rope_theta 1,000,000)"
    assert (found["vocabulary"], found["infilling"]) == (f"{VOCAB} pieces", "yes")


def test_verify_passes_a_sound_file(run: Any, tmp_path: Path) -> None:
    code, out, err = run("verify", saved(tmp_path))
    assert (code, err) == (0, "")
    passed = dict.fromkeys(("tensors", "values", "tokenizer"), "pass")
    skipped = dict.fromkeys(("checksums", "shard agreement", "infilling ids", "rope_theta"), "skip")
    assert statuses(out) == passed | skipped
    assert "12 tensors of Q4_K_M in 1 file" in out
    assert "a GGUF holds none" in out


@pytest.mark.parametrize(("kind", "at"), [("Q4_K", 0), ("Q4_K", 2), ("Q8_0", 0), ("Q3_K", 108), ("F16", 0)])
def test_verify_finds_a_scale_that_is_not_finite(run: Any, tmp_path: Path, kind: str, at: int) -> None:
    raw: Any = np.ones((256, 256), np.float16) if kind == "F16" else random_blocks(kind, 256, 256)
    raw.view(np.uint8)[17, at : at + 2] = (0, 0x7C)  # infinity
    code, out, err = run("verify", saved(tmp_path, more={name_of(WO): (raw, kind)}))
    assert (code, err) == (1, "error: 1 of the checks failed\n")
    assert statuses(out)["values"] == "fail"
    assert "blk.0.attn_output.weight in tiny.Q4_K_M.gguf has 1 values that are NaN or infinite" in out


def test_verify_names_a_defect_of_the_header(run: Any, tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-40_000])
    code, out, _ = run("verify", path)
    assert (code, statuses(out)["tensors"], statuses(out)["values"]) == (1, "fail", "skip")
    assert "cut short" in out
    code, out, err = run("verify", tmp_path / "none.gguf")
    assert (code, out) == (1, "")
    assert "does not exist" in err


def test_progress_ends_where_the_file_does(tmp_path: Path) -> None:
    from llama.checkpoint.verify import verify

    path, counted = saved(tmp_path), []
    assert _bytes_to_read(path, []) == path.stat().st_size
    list(verify(path, progress=counted.append))
    tensors = sum(each.nbytes for each in _raw(path))
    assert sum(counted) == tensors < path.stat().st_size


def _raw(path: Path) -> list[Any]:
    import gguf

    return [tensor.data for tensor in gguf.GGUFReader(path).tensors]


def test_estimate_takes_a_file(run: Any, tmp_path: Path) -> None:
    code, out, _ = run("estimate", "--model", saved(tmp_path), "--seq", 64)
    assert code == 0
    assert "weights" in out


@pytest.mark.parametrize("to", ["meta", "hf"])
def test_convert_writes_the_values_and_the_tokenizer(run: Any, tmp_path: Path, to: str) -> None:
    """Beside the file, too; but never in place of its folder."""
    path = saved(tmp_path)
    code, _, err = run("convert", path, tmp_path / "out", "--to", to, "--dtype", "float32")
    assert (code, err) == (0, ""), err
    code, _, err = run("convert", path, tmp_path, "--to", to, "--force")
    assert (code, path.exists()) == (1, True)
    assert "is, contains or is inside the source" in err
    written, theirs = open_checkpoint(tmp_path / "out"), whole(path)
    for name, shape in written.shapes.items():
        found = torch.empty(shape)
        written.copy_slice(name, found, 0, 1)
        assert torch.equal(found, theirs[name_of(name)]), name
    text = "def f(x):\n    return <PRE> é"
    made = tokenizer_of(written)
    assert made.encode(text, bos=True, eos=False) == tiny_tokenizer().encode(text, bos=True, eos=False)
    assert made.prefix_id == tiny_tokenizer().prefix_id
    assert made.model_bytes == tokenizer_of(open_checkpoint(path)).model_bytes


def test_score_takes_a_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(x):\n    return x\n")
    weights = {name: value.half() for name, value in WEIGHTS.items()}
    path = save_gguf(tmp_path / "plain.gguf", {**BLOCKED, "n_layers": 1}, weights, tiny_tokenizer(), "F16")
    code, out, _ = run("score", path, tmp_path / "a.py", "--device", "cpu")
    assert code == 0
    assert "a.py" in out


def test_a_tokenizer_that_is_named_takes_precedence(run: Any, tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert "441" in run("verify", path, "--tokenizer", tiny_model_path("step"))[1]


def test_convert_names_the_types_that_it_wrote(run: Any, tmp_path: Path) -> None:
    config, pack = SCHEMES["nf4"]
    save_quantized(tmp_path / "nf4", config, pack)
    code, out, err = run("convert", tmp_path / "nf4", tmp_path / "x.gguf")
    assert (code, err) == (0, "")
    assert out.startswith("Wrote 0.2 MiB in Q8_0 (")
