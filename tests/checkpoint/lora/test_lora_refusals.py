"""Adapters that are refused: each with a named error that has the numbers, before any weight is read."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import LINEAR, PREFIX, base_folders, change_config, replace_tensors, save_adapter, tensors_of

from llama.checkpoint import open_checkpoint
from llama.checkpoint.base import Checkpoint
from llama.checkpoint.lora.patterns import Patterns
from llama.errors import (
    CheckpointError,
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
)

A, B = (f"{PREFIX}0.self_attn.q_proj.lora_{each}.weight" for each in "AB")
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sound")
    return base_folders(place) | {
        "adapter": save_adapter(place / "adapter", target_modules=LINEAR, modules_to_save=["lm_head"])
    }


@pytest.fixture
def adapter(sound: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound["adapter"], tmp_path / "adapter"))


@pytest.fixture
def refused(sound: dict[str, Path], adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def check(error: type[Exception], *words: str) -> str:
        def read(*_: Any) -> None:
            raise AssertionError("a weight was read")

        monkeypatch.setattr(Checkpoint, "read", read)
        found = []
        for layout in ("meta 1", "hf"):
            with pytest.raises((CheckpointError, ConfigError)) as caught:
                open_checkpoint(sound[layout], adapter=adapter)
            assert type(caught.value) is error, repr(caught.value)
            found.append(str(caught.value))
        assert found[0] == found[1]
        for word in words:
            assert word in found[0]
        return found[0]

    return check


def test_the_sound_one_is_taken(sound: dict[str, Path], adapter: Path) -> None:
    open_checkpoint(sound["hf"], adapter=adapter)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type says IA3", "LORA"]),
        ({"peft_type": "LOHA"}, ["LoHa"]),
        ({"peft_type": "VERA"}, ["VeRA"]),
        ({"peft_type": "PROMPT_TUNING"}, ["prompt tuning"]),
        ({"peft_type": "NEW"}, ["'NEW'"]),
        ({"peft_type": None}, ["None"]),
        ({"peft_type": ["LORA"]}, ["['LORA']"]),
        ({"use_dora": True}, ["use_dora is True", "DoRA", "merge_and_unload"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"bias": "all"}, ["bias is 'all'"]),
        ({"bias": "lora_only"}, ["bias is 'lora_only'"]),
        (
            {"init_lora_weights": "pissa"},
            ["init_lora_weights is 'pissa'", "path_initial_model_for_weight_conversion"],
        ),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4"]),
        ({"init_lora_weights": "olora"}, ["olora"]),
        ({"init_lora_weights": "corda"}, ["corda"]),
        ({"init_lora_weights": "loftq"}, ["loftq"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication"]),
        ({"trainable_token_indices": [3]}, ["trainable_token_indices"]),
        ({"target_parameters": ["weight"]}, ["target_parameters"]),
        ({"alora_invocation_tokens": [1]}, ["aLoRA"]),
        ({"use_qalora": True}, ["QA-LoRA"]),
        ({"kasa_config": {"beta": 1}}, ["KaSA"]),
        ({"a_new_option": 3}, ["'a_new_option' is 3", "does not know"]),
        ({"r": 0}, ["r is 0"]),
        ({"r": True}, ["r is True"]),
        ({"r": 10**9}, ["r is 1000000000"]),
        ({"r": None}, ["r is None"]),
        ({"lora_alpha": "8"}, ["lora_alpha is '8'"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha is nan"]),
        ({"lora_alpha": 10**40}, ["lora_alpha is 1000"]),
        ({"rank_pattern": [1]}, ["rank_pattern is [1]"]),
        ({"rank_pattern": {"q_proj": 0}}, ["q_proj in rank_pattern is 0"]),
        ({"rank_pattern": {f"x{i}": 1 for i in range(4097)}}, ["rank_pattern has 4,097 names", "4,096"]),
        ({"target_modules": [f"x{i}" for i in range(4097)]}, ["target_modules has 4,097 names", "4,096"]),
        ({"layers_to_transform": [0] * 4097}, ["layers_to_transform has 4,097"]),
        ({"alpha_pattern": {"q_proj": None}}, ["q_proj in alpha_pattern is None"]),
        ({"alpha_pattern": {"(x+)+y": 1}}, ["(x+)+y", "repetitions"]),
        ({"alpha_pattern": {"[z-a]": 1}}, ["[z-a]", "not a regular expression"]),
        ({"target_modules": 3}, ["target_modules is 3"]),
        ({"target_modules": [1]}, ["target_modules is [1]"]),
        ({"exclude_modules": {"a": 1}}, ["exclude_modules"]),
        ({"modules_to_save": "lm_head"}, ["modules_to_save is 'lm_head'"]),
        ({"layers_to_transform": ["1"]}, ["layers_to_transform is ['1']"]),
        ({"layers_pattern": "blocks"}, ["layers_pattern is 'blocks'"]),
    ],
    ids=str,
)
def test_a_config_that_is_not_plain_lora(
    adapter: Path, refused: Callable[..., str], changes: dict[str, Any], words: list[str]
) -> None:
    change_config(adapter, **changes)
    refused(ConfigError, "adapter_config.json", *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, ["rank of model.layers.0.self_attn.q_proj is 4", "says 8"]),
        (
            {"rank_pattern": {"v_proj": 3}},
            ["rank of model.layers.0.self_attn.v_proj is 4", "says 3", "layers.1"],
        ),
        ({"target_modules": ["q_proj"]}, ["it updates model.layers.0.self_attn.k_proj", "target_modules"]),
        ({"target_modules": [*LINEAR, "embed_tokens"]}, ["it lacks A and B of model.embed_tokens"]),
        ({"exclude_modules": ["up_proj"]}, ["it updates model.layers.0.mlp.up_proj"]),
        ({"layers_to_transform": [1]}, ["it updates model.layers.0.self_attn.q_proj"]),
        ({"layers_to_transform": 0}, ["it updates model.layers.1.self_attn.q_proj"]),
        ({"modules_to_save": ["lm_head", "norm"]}, ["it lacks the weight of model.norm"]),
        ({"modules_to_save": ["q_proj"]}, ["it lacks the weight of", "it updates"]),
    ],
    ids=str,
)
def test_a_config_of_another_file(
    adapter: Path, refused: Callable[..., str], changes: dict[str, Any], words: list[str]
) -> None:
    change_config(adapter, **changes)
    refused(CheckpointMismatchError, "adapter_model.safetensors does not fit", *words)


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: each for key, each in tensors.items() if key not in names}


def changed(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name])}


def also(name: str, like: str = A) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[like].clone()}


HEAD = "base_model.model.lm_head.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(B), ["of model.layers.0.self_attn.q_proj it has A without B"]),
        (without(A), ["of model.layers.0.self_attn.q_proj it has B without A"]),
        (without(A, B), ["it lacks A and B of model.layers.0.self_attn.q_proj"]),
        (without(HEAD), ["it lacks the weight of lm_head"]),
        (lambda tensors: {}, ["it lacks A and B of model.layers.0.self_attn.q_proj", "and 10 more"]),
        (changed(A, lambda x: x[:, :48]), ["[4, 48] and [64, 4]", "needs [4, 64] and [64, 4]"]),
        (changed(B, lambda x: x[:32]), ["[4, 64] and [32, 4]", "needs [4, 64] and [64, 4]"]),
        (changed(B, lambda x: x[:, :3]), ["[64, 3]"]),
        (changed(A, lambda x: x[0]), ["are [64] and [64, 4]"]),
        (changed(A, lambda x: x[0, 0]), ["are [] and [64, 4]"]),
        (changed(HEAD, lambda x: x[:-1]), ["the weight of lm_head is [435, 64]", "[436, 64]"]),
        (changed(A, lambda x: x.to(torch.int32)), [f"{A} is of torch.int32"]),
        (
            also(A.replace("layers.0", "layers.2")),
            ["does not have", "layers.2.self_attn.q_proj.lora_A.weight"],
        ),
        (also(A.replace("q_proj", "w_proj")), ["does not have", "w_proj"]),
        (also(A.replace(".lora_A.weight", ".lora_magnitude_vector")), ["lora_magnitude_vector"]),
        (also(A.replace(".lora_A.weight", ".lora_embedding_A")), ["lora_embedding_A"]),
        (also("base_model.model.model.embed_tokens.lora_A.weight"), ["embed_tokens.lora_A.weight"]),
        (also("base_model.model.model.norm.lora_A.weight"), ["norm.lora_A.weight"]),
        (also(f"{PREFIX}0.self_attn.q_proj.bias"), ["q_proj.bias"]),
        (also(A.removeprefix("base_model.model.")), ["it holds twice", "q_proj.lora_A.weight"]),
        (also(HEAD.replace(".weight", ".base_layer.weight"), HEAD), ["it holds twice", "lm_head"]),
        (
            also(f"{PREFIX}0.mlp.up_proj.weight", f"{PREFIX}0.mlp.up_proj.lora_B.weight"),
            ["replaces the weight of"],
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_tensors_that_do_not_fit(
    adapter: Path, refused: Callable[..., str], change: Callable[[Tensors], Tensors], words: list[str]
) -> None:
    replace_tensors(adapter, change(tensors_of(adapter)))
    refused(CheckpointMismatchError, "adapter_model.safetensors does not fit", *words)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [A, B, HEAD])
def test_values_that_are_not_finite(
    adapter: Path, refused: Callable[..., str], name: str, value: float
) -> None:
    tensors = tensors_of(adapter)
    tensors[name][1, 1:3] = value
    replace_tensors(adapter, tensors)
    refused(CheckpointFormatError, f"{name} has 2 values that are NaN or infinite")


def test_folders_that_hold_no_adapter(
    sound: dict[str, Path], adapter: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    refused(CheckpointFormatError, "truncated")
    weights.unlink()
    refused(CheckpointNotFoundError, "no adapter_model.safetensors and no adapter_model.bin")
    (adapter / "adapter_model.bin").write_bytes(b"<html>")
    refused(CheckpointFormatError, "HTML")
    (adapter / "adapter_config.json").write_text("[]")
    refused(CheckpointFormatError, "adapter_config.json", "not an object")
    (adapter / "adapter_config.json").write_text('{"r": 4, "r": 8}')
    refused(CheckpointFormatError, "'r' occurs twice")
    (adapter / "adapter_config.json").unlink()
    refused(CheckpointNotFoundError, "no adapter_config.json")
    shutil.rmtree(adapter)
    refused(CheckpointNotFoundError, "adapter folder", "does not exist")
    adapter.write_text("")
    refused(CheckpointNotFoundError, "is a file", "the adapter")
    with pytest.raises(ConfigError, match=r"the adapter's folder is 3; it must be a path"):
        open_checkpoint(sound["hf"], adapter=3)  # type: ignore[arg-type]


def test_an_adapter_in_place_of_its_base(adapter: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"it holds an adapter; pass its base model.*--adapter"):
        open_checkpoint(adapter)


def test_a_pickle_that_holds_code_is_not_run(adapter: Path, refused: Callable[..., str]) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (adapter / "was run",)

    (adapter / "adapter_model.safetensors").unlink()
    torch.save({A: Code()}, adapter / "adapter_model.bin")
    refused(CheckpointFormatError, "more than tensors")
    assert not (adapter / "was run").exists()


# ---- patterns ----------------------------------------------------------------------------------------------

MODULE = "model.layers.31.self_attn.q_proj"


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("q_proj", True),
        ("proj", False),
        (MODULE, True),
        ("layers.31.self_attn.q_proj", True),
        ("ayers.31.self_attn.q_proj", False),
        ("^model.layers.31.self_attn.q_proj", True),
        ("^layers.31.self_attn.q_proj", False),
        (r"model\.layers\.\d+\.self_attn\.(q|v)_proj", True),
        (r".*\.self_attn\..*", True),
        (r"layers.(30|31).*_proj", True),
        (r"layers.[0-2]\d?.self_attn.q_proj", False),
        ("v_proj|q_proj", True),
        (r"\w_proj$", True),
        (r"(?:k|v)_proj", False),
    ],
)
def test_patterns_match_as_peft_matches(pattern: str, matches: bool) -> None:
    from peft.utils.other import get_pattern_key

    assert (get_pattern_key([pattern], MODULE) == pattern) == (matches or pattern == MODULE)
    assert (Patterns([pattern], "here").first(MODULE) == pattern) == matches


def test_the_first_pattern_counts() -> None:
    assert Patterns(["v_proj", ".*_proj", "q_proj"], "here").first(MODULE) == ".*_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        "(.*)*x",
        "(a+)+$",
        "(.|.)(.|.)(.|.)(.|.)x",
        ".*.*.*.*x",
        "(a|aa)+x",
        "(?=x)q",
        r"(q)\1",
        "(?P<x>q)",
        "a" * 257,
        "[a--b]",
        "\x00",
        "",
    ],
)
def test_patterns_of_many_choices_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="at most 3 repetitions or groups"):
        Patterns([pattern], "here")


def test_what_is_allowed_ends_soon() -> None:
    """The bound is generous: a hang takes years."""
    started = time.monotonic()
    for pattern in (".*.*.*-", "(.|.|.)(.|.|.|.)(.|.|.|.|.)x", r"[\w.]*[\w.]*[\w.]*-"):
        assert Patterns([pattern], "here").first(f"model.layers.31.{'self_attn' * 3}.q_proj") is None
    assert time.monotonic() - started < 60
    with pytest.raises(ConfigError, match="64 such patterns"):
        Patterns([f".*x{number}" for number in range(65)], "here")


def test_plain_names_are_as_many_as_modules(adapter: Path, sound: dict[str, Path]) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    names = {f"model.layers.{layer}.mlp.up_proj": 8 for layer in range(500)}
    path.write_text(json.dumps(config | {"alpha_pattern": names}))
    open_checkpoint(sound["hf"], adapter=adapter)
