"""Laws of config.json: unsupported keys are refused by name, absent ones have transformers' defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hf_models import (
    assert_same_logits,
    change_config,
    load,
    logits_of,
    random_model,
    save,
)
from tiny_tokenizers import tiny_tokenizer

from llama.checkpoint import open_checkpoint
from llama.errors import CheckpointMismatchError, ConfigError


@pytest.mark.parametrize("theta", [1e6, 1e4])
@pytest.mark.parametrize("style", ["4", "4, null", "5", "both"])
def test_rope_theta_in_the_styles_of_transformers_4_and_5(tmp_path: Path, style: str, theta: float) -> None:
    model = random_model()
    save(model, tmp_path)
    told: dict[str, dict[str, Any]] = {
        "4": {"rope_theta": theta, "torch_dtype": "float32"},
        "4, null": {"rope_theta": theta, "rope_scaling": None, "torch_dtype": "float32"},
        "5": {"rope_parameters": {"rope_theta": theta, "rope_type": "default"}, "dtype": "float32"},
        "both": {"rope_theta": theta, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}},
    }
    change_config(tmp_path, "rope_parameters", "rope_theta", "dtype", "torch_dtype", **told[style])
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    expected = logits_of(theirs)
    assert open_checkpoint(tmp_path).args.rope_theta == theta
    assert_same_logits(tmp_path, expected)
    if theta == 1e4:
        assert (expected - logits_of(model)).abs().max() > 0.1


@pytest.mark.parametrize(
    "drop",
    [
        ("rope_parameters", "rope_theta"),
        ("rms_norm_eps",),
        ("num_key_value_heads",),
        ("vocab_size",),
        ("hidden_act", "attention_bias", "mlp_bias", "head_dim", "tie_word_embeddings", "architectures"),
    ],
    ids=lambda drop: drop[0],
)
def test_absent_keys_have_the_defaults_of_transformers(tmp_path: Path, drop: tuple[str, ...]) -> None:
    from transformers import LlamaConfig

    save(random_model(8), tmp_path)
    config = change_config(tmp_path, *drop)
    theirs = LlamaConfig(**config)
    args = open_checkpoint(tmp_path).args
    assert args.rope_theta == theirs.rope_parameters["rope_theta"]
    assert args.norm_eps == theirs.rms_norm_eps
    assert args.kv_heads == theirs.num_key_value_heads == 8
    # The embedding decides where config.json is silent; transformers' default is Llama 2's.
    assert args.vocab_size == tiny_tokenizer().n_words
    assert args.ffn_dim == theirs.intermediate_size
    assert args.head_dim == theirs.head_dim


def test_keys_without_a_default_are_named(tmp_path: Path) -> None:
    save(random_model(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        change_config(tmp_path, key)
        with pytest.raises(ConfigError, match=rf"config\.json.*lacks {key};"):
            open_checkpoint(tmp_path)
        (tmp_path / "config.json").write_text(before)


SCALED = {"rope_theta": 1e6, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            ["architecture", "MistralForCausalLM", "LlamaForCausalLM"],
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"model_type": "mistral"}, ["model_type", "'mistral'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "linear", "2.0"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, ["rope_scaling", "dynamic"]),
        ({"rope_scaling": {"factor": 4.0}}, ["rope_scaling", "4.0"]),
        ({"rope_scaling": "linear"}, ["rope_scaling", "linear"]),
        ({"rope_parameters": SCALED}, ["rope_parameters", "llama3", "8.0"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["rope_parameters", "yarn"]),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, ["rope_parameters", "0.5"]),
        ({"rope_parameters": {"rope_theta": -1.0}}, ["rope_theta", "-1.0"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"attention_bias": True}, ["attention_bias", "True"]),
        ({"mlp_bias": True}, ["mlp_bias", "True"]),
        ({"sliding_window": 4096}, ["sliding_window", "4096"]),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 3}},
            ["quantization_config", "gptq", "bits is 3"],
        ),
        ({"quantization_config": {"quant_method": "hqq"}}, ["quantization_config", "hqq", "gptq, awq"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "'gelu'", "'silu'"]),
        ({"head_dim": 16}, ["head_dim", "16", "64", "8"]),
        ({"head_dim": "8"}, ["head_dim", "'8'"]),
        ({"head_dim": {}}, ["head_dim", "{}"]),
        ({"hidden_size": 24}, ["24", "8 heads"]),
        ({"hidden_size": "64"}, ["'64'"]),
        ({"num_hidden_layers": True}, ["True"]),
        ({"intermediate_size": 0}, ["intermediate_size", "0"]),
        ({"num_key_value_heads": 3}, ["n_kv_heads", "3"]),
        ({"rms_norm_eps": "small"}, ["norm_eps", "'small'"]),
        ({"vocab_size": "many"}, ["vocab_size", "'many'"]),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_this_runtime_does_not_do_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    """Before any weight is opened: these are not even there."""
    random_model().config.save_pretrained(tmp_path)
    change_config(tmp_path, *(["head_dim"] if "hidden_size" in changes else []), **changes)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    for word in ("config.json", *words):
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 9}, ["vocab_size 9", str(tiny_tokenizer().n_words), "config.json"]),
        ({"num_hidden_layers": 3}, ["model.layers.2.self_attn.q_proj.weight"]),
        ({"num_hidden_layers": 1}, ["does not know", "model.layers.1."]),
        ({"num_key_value_heads": 4}, ["k_proj.weight", "[16, 64]", "[32, 64]"]),
        ({"intermediate_size": 192}, ["gate_proj.weight", "[176, 64]", "[192, 64]"]),
    ],
    ids=str,
)
def test_a_config_that_the_shapes_contradict(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    save(random_model(), tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(tmp_path)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"
