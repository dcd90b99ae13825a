"""Laws of GPTQ, AWQ and bitsandbytes folders: every window of every matrix is what the format's description says.

The oracle is the packers' own arithmetic (quantized_folders.py), and transformers' model with those weights.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import IDS, in_meta_order, load, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_folders import AWQ, GPTQ, SCHEMES, awq, gptq, save_quantized
from slices import mine

from llama.checkpoint import HuggingFaceCheckpoint, open_checkpoint
from llama.checkpoint.base import Checkpoint
from llama.checkpoint.fingerprint import fingerprint
from llama.checkpoint.verify import verify
from llama.errors import CheckpointFormatError
from llama.kernels.quantized import FORMATS, dequantize
from llama.model import Transformer

PARAMS: dict[str, Any] = {"n_heads": 8, "n_kv_heads": 2}
EXACT = [name for name in SCHEMES if name.startswith(("gptq", "awq"))]
MATRICES = [
    f"layers.1.{part}.weight"
    for part in (
        "attention.wq",
        "attention.wk",
        "attention.wv",
        "attention.wo",
        "feed_forward.w1",
        "feed_forward.w2",
    )
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scheme -> the opened folder and its weights by Meta's names."""
    place = tmp_path_factory.mktemp("quantized")

    @functools.cache
    def opened(scheme: str) -> tuple[Checkpoint, dict[str, torch.Tensor], Any]:
        model = save_quantized(place / scheme, *SCHEMES[scheme])
        return open_checkpoint(place / scheme), in_meta_order(model), model

    return opened


def read(
    checkpoint: Checkpoint, name: str, rows: tuple[int, int], columns: tuple[int, int] | None
) -> torch.Tensor:
    size = (rows[1] - rows[0],) if columns is None else (rows[1] - rows[0], columns[1] - columns[0])
    found = torch.full(size, torch.nan)
    checkpoint.read(name, found, rows, columns)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_rank_reads_its_slices_bit_for_bit(folders: Any, scheme: str) -> None:
    checkpoint, weights, _ = folders(scheme)
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    assert checkpoint.is_quantized
    assert checkpoint.dtype == torch.float16
    for size in (1, 2, 4):
        for rank in range(size):
            for name, whole in weights.items():
                expected = mine(name, whole, PARAMS, rank, size)
                found = read(checkpoint, name, *checkpoint.slice_of(name, rank, size))
                assert torch.equal(found, expected), f"{name} of rank {rank} of {size}"


@settings(max_examples=150, deadline=None)
@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)), name=st.sampled_from(MATRICES))
def test_any_window_of_rows_and_columns(folders: Any, data: Any, scheme: str, name: str) -> None:
    """Odd ones, within a word, a block or a head, of one row, of none."""
    checkpoint, weights, _ = folders(scheme)
    (a, b), (c, d) = [
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in weights[name].shape
    ]
    assert torch.equal(read(checkpoint, name, (a, b), (c, d)), weights[name][a:b, c:d])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), scheme=st.sampled_from(sorted(SCHEMES)), name=st.sampled_from(MATRICES))
def test_the_blocks_of_any_window_hold_the_form_that_was_told(
    folders: Any, data: Any, scheme: str, name: str
) -> None:
    """Weights of columns that are not x's are read by nobody or 0, and those of x's are the matrix."""
    checkpoint, weights, _ = folders(scheme)
    whole = weights[name]
    a, b = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=2, max_size=2)))
    c, d = sorted(data.draw(st.lists(st.integers(0, whole.shape[1]), min_size=2, max_size=2, unique=True)))
    form = checkpoint.form(name, (c, d))
    found = checkpoint.blocks(name, (a, b), (c, d))
    assert form is not None
    assert (found.form.format, found.form.columns, found.form.group) == (
        form.format,
        form.columns,
        form.group,
    )
    assert found.form.columns % 32 == 0
    assert found.form.group % 32 == 0
    assert found.codes.shape == (b - a, form.columns)
    assert found.codes.dtype == torch.uint8
    assert found.scales.shape == (b - a, form.groups)
    assert found.scales.dtype == torch.float16
    zero = FORMATS[form.format].zero
    assert (found.zeros is None) == (zero is not None)
    if found.zeros is not None:
        assert found.zeros.shape == (b - a, form.groups)
        assert found.zeros.dtype == torch.uint8
    values = dequantize(found)
    window = torch.zeros(b - a, d - c)
    order = torch.arange(d - c, dtype=torch.int32) if form.order is None else form.order
    assert sorted(order[order >= 0].tolist()) == list(range(d - c))
    window[:, order[order >= 0].long()] = values[:, order >= 0]
    if scheme in EXACT:
        assert torch.equal(window, whole[a:b, c:d])
    else:
        assert form.format == "int8"
        assert not ((window - whole[a:b, c:d]).abs() > whole.abs().max() / 250).any()
    if "act-order" in scheme:
        assert not values[:, order < 0].any(), "padding is a weight of 0"


def test_groups_that_fit_are_kept(folders: Any) -> None:
    """Act-order of a whole row needs no padding; a part of one has some of each group."""
    checkpoint, _, _ = folders("gptq 4 act-order, 64")
    whole = checkpoint.form("layers.0.feed_forward.w2.weight", (0, 192))
    half = checkpoint.form("layers.0.feed_forward.w2.weight", (0, 96))
    assert (whole.columns, whole.group) == (192, 64)
    assert half.columns >= 96
    assert int((half.order >= 0).sum()) == 96
    plain = folders("gptq 4, 64")[0].form("layers.0.feed_forward.w2.weight", (0, 192))
    assert (plain.columns, plain.group, plain.order) == (192, 64, None)


def logits_here(checkpoint: Checkpoint) -> torch.Tensor:
    """Of a model whose weights `read` gives, in float32."""
    model = Transformer(checkpoint.args)
    for name, module in model.named_modules():
        if hasattr(module, "assign"):
            shape = checkpoint.shapes[f"{name}.weight"]
            module.assign(
                read(checkpoint, f"{name}.weight", (0, shape[0]), (0, shape[1]) if shape[1:] else None)
            )
    return torch.stack([model.eval()(torch.tensor([ids])).float()[0] for ids in IDS])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_are_those_of_transformers_with_these_weights(folders: Any, scheme: str) -> None:
    checkpoint, _, model = folders(scheme)
    assert (logits_here(checkpoint) - logits_of(model)).abs().max() < 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_built_model_computes_the_same_up_to_what_int8_inputs_cost(folders: Any, scheme: str) -> None:
    """Through whatever kernel this machine has: about 3 % of the logits' size. A wrong order gives 100 %."""
    checkpoint, _, model = folders(scheme)
    expected = logits_of(model)
    with load(checkpoint.folder) as llama:
        found = llama.model(torch.tensor(IDS))
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize(("settings", "pack"), [(GPTQ, gptq()), (AWQ, awq())], ids=["gptq", "awq"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_quantized_output_matrix_and_bins(
    tmp_path: Path, settings: Any, pack: Any, dtype: torch.dtype
) -> None:
    model = save_quantized(tmp_path, settings, pack, head=True, dtype=dtype, bins=True)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.dtype == torch.float16
    assert checkpoint.form("output.weight", (0, 64)) is not None
    assert checkpoint.form("tok_embeddings.weight", (0, 64)) is None
    assert checkpoint.dtype_of("tok_embeddings.weight") == dtype
    for name, whole in in_meta_order(model).items():
        columns = (0, whole.shape[1]) if whole.dim() == 2 else None
        assert torch.equal(read(checkpoint, name, (0, len(whole)), columns), whole), name


@pytest.mark.parametrize("scheme", ["gptq 4", "awq", "nf4", "int8"])
def test_modules_that_were_left_out_are_plain(tmp_path: Path, scheme: str) -> None:
    config, pack = SCHEMES[scheme]
    key = "llm_int8_skip_modules" if scheme in ("nf4", "int8") else "modules_to_not_convert"
    model = save_quantized(tmp_path, {**config, key: ["down_proj"]}, pack, left="down_proj")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.form("layers.0.feed_forward.w2.weight", (0, 192)) is None
    assert checkpoint.form("layers.0.feed_forward.w1.weight", (0, 64)) is not None
    for name, whole in in_meta_order(model).items():
        columns = (0, whole.shape[1]) if whole.dim() == 2 else None
        assert torch.equal(read(checkpoint, name, (0, len(whole)), columns), whole), name


@pytest.mark.parametrize("scheme", ["gptq 4", "gptq 4 act-order", "awq", "nf4 nested", "int8"])
def test_a_file_that_is_cut_while_it_is_open_is_noticed(tmp_path: Path, scheme: str) -> None:
    """Touching what is gone would end the process."""
    save_quantized(tmp_path, *SCHEMES[scheme])
    checkpoint = open_checkpoint(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 4096)
    for read_it in (checkpoint.blocks, checkpoint.compute):
        with pytest.raises(CheckpointFormatError, match="was cut from"):
            read_it("layers.1.attention.wq.weight", (3, 20), (0, 64))


@pytest.mark.parametrize(
    ("file", "config", "pack", "title"),
    [
        (
            "quantize_config.json",
            {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": True, "sym": False},
            gptq(act_order=True),
            "GPTQ 4 bit, groups of 32, act-order",
        ),
        (
            "quant_config.json",
            {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
            awq(group=64),
            "AWQ 4 bit, groups of 64",
        ),
    ],
    ids=["AutoGPTQ", "AutoAWQ"],
)
def test_the_config_may_lie_beside(tmp_path: Path, file: str, config: Any, pack: Any, title: str) -> None:
    model = save_quantized(tmp_path, None, pack)
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")  # AutoGPTQ's name
    (tmp_path / file).write_text(json.dumps(config))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.quantization == title
    for name, whole in in_meta_order(model).items():
        columns = (0, whole.shape[1]) if whole.dim() == 2 else None
        assert torch.equal(read(checkpoint, name, (0, len(whole)), columns), whole), name


def test_what_is_quantized_again_is_said(folders: Any) -> None:
    for scheme in SCHEMES:
        notes = folders(scheme)[0].notes
        assert len(notes) == (scheme not in EXACT)
        if notes:
            assert "14 matrices in bitsandbytes" in notes[0]
            assert "int8" in notes[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_verify_reads_every_scheme(folders: Any, scheme: str) -> None:
    found = {finding.name: finding for finding in verify(folders(scheme)[0].folder)}
    assert found["tensors"].status == "pass", found["tensors"]
    assert found["values"].status == "pass", found["values"]


def test_every_scheme_has_a_fingerprint_of_its_own(folders: Any) -> None:
    assert len({fingerprint(folders(scheme)[0]) for scheme in SCHEMES}) == len(SCHEMES)
