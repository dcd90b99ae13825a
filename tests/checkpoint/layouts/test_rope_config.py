"""Law of config.json's rotary positions: the frequencies are transformers', or the file is refused.

The oracle is transformers' own LlamaConfig and the rotary embedding it makes.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llama.checkpoint.layouts.hf_config import read_config
from llama.errors import ConfigError
from llama.model import rotary_table

SHAPE = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 176,
    "num_hidden_layers": 1,
    "vocab_size": 10,
}
THETA = st.sampled_from([1e4, 1e6, 1000000, 5e5])
# Every key of the object that transformers 5 reads for any kind of rotary positions, and one nested key.
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "rope_theta": THETA,
        "rope_type": st.sampled_from(
            ["default", "default", "linear", "yarn", "llama3", "dynamic", "longrope", None]
        ),
        "type": st.sampled_from(["default", "linear", None]),
    },
)
OTHERS = st.dictionaries(
    st.sampled_from(
        [
            "factor",
            "original_max_position_embeddings",
            "partial_rotary_factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "low_freq_factor",
            "high_freq_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ]
    ),
    st.sampled_from([1, 1.0, 2.0, 0.5, 32, None]),
    max_size=1,
)
LISTS = st.dictionaries(
    st.sampled_from(["short_factor", "long_factor"]), st.just([1.0, 2.0, 3.0, 4.0]), max_size=2
)
ROPE = st.one_of(
    st.none(),
    OBJECT,
    st.tuples(OBJECT, OTHERS, LISTS).map(lambda parts: parts[0] | parts[1] | parts[2]),
    st.just({"full_attention": {"rope_theta": 1e6}}),
)
CONFIG = st.fixed_dictionaries(
    {},
    optional={
        "rope_scaling": ROPE,
        "rope_parameters": ROPE,
        "rope_theta": st.one_of(THETA, st.none()),
        "partial_rotary_factor": st.sampled_from([1, 1.0, 0.5]),
        "layer_types": st.just(["full_attention"]),
    },
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of nearly every one of these."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def their_frequencies(changes: dict[str, Any]) -> torch.Tensor | None:
    """None where transformers cannot make them."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    with quiet():
        try:
            made = LlamaRotaryEmbedding(LlamaConfig(**SHAPE, **copy.deepcopy(changes)))
        except Exception:
            return None
    frequencies: torch.Tensor = made.inv_freq * made.attention_scaling
    return frequencies


def our_frequencies(folder: Path, changes: dict[str, Any]) -> torch.Tensor:
    (folder / "config.json").write_text(json.dumps({**SHAPE, **changes}))
    args, _ = read_config(folder, max_seq_len=64, max_batch_size=1)
    # The angles of position 1.
    return rotary_table(torch.tensor([1]), args.head_dim, args.rope_theta)[0].angle()


@settings(max_examples=200)
@given(changes=CONFIG)
@example({"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}})
@example({"rope_scaling": {"rope_theta": 1e6}, "rope_parameters": {"rope_theta": 1e4}})
@example({"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e6}})
@example({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4})
def test_frequencies_are_those_of_transformers_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    try:
        ours = our_frequencies(tmp_path_factory.getbasetemp(), changes)
    except ConfigError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert any(key in refused for key in ("rope_", "partial_rotary_factor"))
        return
    theirs = their_frequencies(changes)
    assert theirs is not None
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_scaling": {"rope_theta": 1e6}, "rope_theta": 1e6},
        {"rope_scaling": {"type": "default"}, "rope_theta": 1e6},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0}},
        {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {}},
        {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"rope_theta": 1000000}, "rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None, "rope_parameters": None},
    ],
    ids=str,
)
def test_rope_theta_is_read_wherever_it_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = their_frequencies(changes)
    assert theirs is not None
    assert torch.allclose(our_frequencies(tmp_path, changes), theirs, rtol=1e-5, atol=0)
    assert not torch.allclose(theirs, our_frequencies(tmp_path, {}), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # transformers 4 takes the one outside, transformers 5 the one in the object.
        (
            {"rope_scaling": {"rope_theta": 1e6}, "rope_theta": 1e4},
            ["rope_theta in rope_scaling is 1000000.0", "rope_theta is 10000.0"],
        ),
        (
            {"rope_scaling": {"rope_theta": 1e6}, "rope_parameters": {"rope_theta": 5e5}},
            ["rope_scaling is 1000000.0", "rope_parameters is 500000.0"],
        ),
        (
            {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 1e6}},
            ["rope_parameters is 1000000.0", "by default is 10000.0"],
        ),
        (
            {"rope_scaling": {"rope_theta": 1e6, "attention_factor": 0.5}},
            ["rope_scaling", "attention_factor"],
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, ["rope_parameters", "full_attention"]),
        ({"rope_parameters": 0}, ["rope_parameters", "0"]),
        ({"rope_scaling": {"rope_theta": "1e6"}}, ["rope_theta", "'1e6'"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "'yes'"]),
    ],
    ids=str,
)
def test_what_could_be_read_in_two_ways_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        our_frequencies(tmp_path, changes)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"
