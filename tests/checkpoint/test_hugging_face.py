"""Laws of Hugging Face folders: whatever transformers saved computes here what it computes there, on any number of
ranks; what its config.json asks for and this runtime does not do is refused by name.

The oracle is transformers' own model and the weights in it. Their order of rotary rows is undone here a second time.
"""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_script import SHARDS, texts
from ranks import run_ranks
from test_load import mine
from tiny_models import SHAPE
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import HuggingFaceCheckpoint, open_checkpoint
from llama.errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError, ConfigError
from llama.sizing.shapes import expected_shapes

TOLERANCE = 1e-4
IDS = [[1, 10, 200, 31, 7, 7, 300, 42, 99, 5, 64, 12], [1, 400, 2, 3, 55, 21, 8, 150, 77, 310, 18, 6]]
NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@functools.cache
def random_model(
    kv_heads: int = 2, tied: bool = False, dtype: torch.dtype = torch.float32, vocab: int | None = None
) -> Any:
    """A random LlamaForCausalLM for the tiny tokenizer; its logits are far from uniform, so that errors show."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab or tiny_tokenizer().n_words,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(kv_heads)
    for value in model.parameters():
        noise = torch.randn(value.shape, generator=generator)
        value.copy_(1 + 0.1 * noise if value.dim() == 1 else noise * 0.3)
    return model.to(dtype)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor(IDS)).logits
    assert found.std() > 1
    return found


def in_meta_order(model: Any) -> dict[str, torch.Tensor]:
    """The weights by Meta's names, rotary pairs side by side."""
    state, heads = model.state_dict(), model.config.num_attention_heads
    names = {"tok_embeddings.weight": EMBEDDING, "norm.weight": "model.norm.weight", "output.weight": HEAD}
    for layer in range(model.config.num_hidden_layers):
        names |= {
            f"layers.{layer}.{ours}.weight": f"model.layers.{layer}.{theirs}.weight"
            for ours, theirs in NAMES.items()
        }
    found = {ours: state[theirs] for ours, theirs in names.items()}
    for name, value in found.items():
        if name.endswith(("wq.weight", "wk.weight")):
            count = heads if "wq" in name else model.config.num_key_value_heads
            low, high = value.view(count, 2, -1, value.shape[1]).unbind(1)
            found[name] = torch.stack([low, high], dim=2).reshape(value.shape)
    return found


WAYS = (
    "safetensors",
    "safetensors with index",
    "bin",
    "bin with index",
    "numbered bins",
    "numbered safetensors",
)


def save(model: Any, folder: Path, way: str = "safetensors") -> Path:
    """As transformers saves it; its releases before 4.30 wrote .bin, which is torch.save."""
    model.save_pretrained(
        folder, max_shard_size="60KB" if way.endswith("index") or "numbered" in way else "1GB"
    )
    shutil.copy(tiny_model_path(), folder / "tokenizer.model")
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 3) == (way not in ("safetensors", "bin"))
    if "bin" in way:
        where, index = {}, folder / "model.safetensors.index.json"
        if index.exists():
            where = json.loads(index.read_text())["weight_map"]
            index.unlink()
        state = model.state_dict()
        for i, path in enumerate(files, 1):
            name = f"pytorch_model-{i:05d}-of-{len(files):05d}.bin" if where else "pytorch_model.bin"
            chosen = {k: v for k, v in state.items() if where.get(k, path.name) == path.name}
            torch.save(chosen, folder / name)
            where = {k: name if v == path.name else v for k, v in where.items()}
            path.unlink()
        if where:
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    if "numbered" in way:
        for path in folder.glob("*.index.json"):
            path.unlink()
    return folder


def load(folder: Path, **options: Any) -> Llama:
    return Llama.build(folder, None, 64, 2, 1, device="cpu", **{"dtype": "float32", **options})


def change_config(folder: Path, *drop: str, **changes: Any) -> dict[str, Any]:
    path = folder / "config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in drop} | changes
    path.write_text(json.dumps(config))
    return config


def assert_same_logits(folder: Path, expected: torch.Tensor) -> None:
    with load(folder) as llama:
        found = llama.model(torch.tensor(IDS))
    assert (found - expected).abs().max() < TOLERANCE


# ---- what transformers saved, computes the same here ---------------------------------------------------


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_transformers(tmp_path: Path, way: str, kv_heads: int) -> None:
    model = random_model(kv_heads)
    assert_same_logits(save(model, tmp_path, way), logits_of(model))


def test_greedy_text_is_that_of_transformers(tmp_path: Path) -> None:
    model = random_model()
    with load(save(model, tmp_path)) as llama:
        found, _ = llama.generate(IDS[:1], 12, temperature=0)
    expected = model.generate(
        torch.tensor(IDS[:1]), attention_mask=torch.ones(1, len(IDS[0])), max_new_tokens=12, do_sample=False
    )
    ids = expected[0, len(IDS[0]) :].tolist()
    ends = [ids.index(end) for end in (2,) if end in ids]
    assert found[0] == ids[: min(ends, default=12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["safetensors with index", "bin"])
@pytest.mark.parametrize("kv_heads", [8, 4, 2, 1])
def test_every_rank_gets_its_slices_bit_for_bit(
    tmp_path: Path, kv_heads: int, way: str, dtype: torch.dtype
) -> None:
    """More ranks than key/value heads included: neighbours then hold the same head."""
    model = random_model(kv_heads, False, dtype, 48)
    checkpoint = open_checkpoint(save(model, tmp_path, way))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    assert checkpoint.dtype == dtype
    weights = in_meta_order(model)
    assert weights.keys() == expected_shapes(checkpoint.args).keys()
    params = {**SHAPE, "n_kv_heads": kv_heads}
    for size in (1, 2, 4, 8):
        for rank in range(size):
            for name, whole in weights.items():
                expected = mine(name, whole, params, rank, size)
                found = torch.full(expected.shape, torch.nan, dtype=dtype)
                checkpoint.copy_slice(name, found, rank, size)
                assert torch.equal(found, expected), f"{name} of rank {rank} of {size}"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceCheckpoint:
    checkpoint = open_checkpoint(save(random_model(), tmp_path_factory.mktemp("windows")))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    return checkpoint


@settings(max_examples=300, deadline=None)
@given(data=st.data(), part=st.sampled_from(["wq", "wk", "wv", "wo"]))
def test_any_window_of_rows_and_columns(opened: HuggingFaceCheckpoint, data: Any, part: str) -> None:
    """Odd ones, within a head, across heads, of one row, of none."""
    name = f"layers.1.attention.{part}.weight"
    whole = in_meta_order(random_model())[name]
    bounds = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in whole.shape]
    (a, b), (c, d) = bounds
    found = torch.full((b - a, d - c), torch.nan)
    opened.read(name, found, (a, b), (c, d))
    assert torch.equal(found, whole[a:b, c:d])


def test_a_bfloat16_model_is_loaded_as_stored(tmp_path: Path) -> None:
    model = random_model(2, False, torch.bfloat16)
    checkpoint = open_checkpoint(save(model, tmp_path))
    assert checkpoint.dtype == torch.bfloat16
    with load(tmp_path) as llama:
        state = llama.model.state_dict()
    for name, value in in_meta_order(model).items():
        assert torch.equal(state[name], value.float()), name


@pytest.mark.parametrize("way", ["safetensors", "bin"])
def test_tied_embeddings(tmp_path: Path, way: str) -> None:
    """transformers leaves lm_head out of safetensors; a state dict in a .bin has both."""
    model = random_model(2, True)
    save(model, tmp_path, way)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    assert_same_logits(tmp_path, logits_of(model))
    if way == "safetensors":
        change_config(tmp_path, tie_word_embeddings=False)
        with pytest.raises(CheckpointMismatchError, match=r"lacks lm_head\.weight"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
)
def test_saved_frequencies_are_ignored(tmp_path: Path, name: str) -> None:
    model = random_model()
    save(model, tmp_path, "bin with index")
    index = tmp_path / "pytorch_model.bin.index.json"
    where = json.loads(index.read_text())["weight_map"]
    last = sorted(set(where.values()))[-1]
    tensors = torch.load(tmp_path / last, weights_only=True)
    torch.save({**tensors, name: torch.zeros(4, dtype=torch.float64)}, tmp_path / last)
    # Known to the index or not.
    for known in ({}, {name: last}):
        index.write_text(json.dumps({"weight_map": where | known}))
        assert_same_logits(tmp_path, logits_of(model))


def test_an_index_that_an_earlier_save_left_does_not_count(tmp_path: Path) -> None:
    """transformers removes the old files when it saves again, but not their index."""
    save(random_model(8), tmp_path, "safetensors with index")
    model = random_model(2)
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "model.safetensors.index.json"} <= {path.name for path in tmp_path.iterdir()}
    assert_same_logits(tmp_path, logits_of(model))


def test_safetensors_are_preferred_to_bins(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path)
    torch.save({"not": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_same_logits(tmp_path, logits_of(model))


def test_another_vendors_copy_of_the_weights_is_left_alone(tmp_path: Path) -> None:
    model = random_model()
    save(model, tmp_path, "numbered safetensors")
    shutil.copy(next(tmp_path.glob("*.safetensors")), tmp_path / "consolidated.safetensors")
    assert_same_logits(tmp_path, logits_of(model))


def test_files_of_metas_layout_count_where_both_are_there(tmp_path: Path) -> None:
    """Some repositories hold both; consolidated.safetensors beside the rest is no part of either."""
    save(random_model(), tmp_path)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x")
    assert open_checkpoint(tmp_path).layout == "Hugging Face"
    (tmp_path / "consolidated.00.pth").write_bytes(b"x")  # alone it is no checkpoint of Meta's
    assert open_checkpoint(tmp_path).layout == "Hugging Face"
    (tmp_path / "params.json").write_text('{"dim": 64, "n_layers": 2, "n_heads": 8}')
    with pytest.raises(CheckpointFormatError, match=r"consolidated\.00\.pth"):
        open_checkpoint(tmp_path)


# ---- config.json -------------------------------------------------------------------------------------


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
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantization_config", "gptq"]),
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


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Of the state dict in pytorch_model.bin."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in tensors.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({Q_PROJ: None}, ["lacks", Q_PROJ]),
        ({EMBEDDING: None}, [EMBEDDING]),
        ({HEAD: None}, ["lacks", HEAD]),
        ({"model.layers.0.mlp.up_proj.bias": torch.zeros(176)}, ["model.layers.0.mlp.up_proj.bias"]),
        ({"model.layers.9.self_attn.rotary_emb.inv_freq2": torch.zeros(4)}, ["inv_freq2"]),
        ({Q_PROJ: torch.zeros(64, 32)}, [Q_PROJ, "[64, 32]", "[64, 64]", "pytorch_model.bin"]),
        ({Q_PROJ: torch.zeros(64, 64).half()}, [Q_PROJ, "float16", "float32", "save it again"]),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    save(random_model(), tmp_path, "bin")
    edit(tmp_path, **changes)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(tmp_path)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {caught.value}"


@pytest.mark.parametrize("way", ["numbered bins", "numbered safetensors"])
def test_a_lost_file_of_numbered_ones_is_named(tmp_path: Path, way: str) -> None:
    files = sorted(save(random_model(), tmp_path, way).glob("*-of-*"))
    files[1].unlink()
    with pytest.raises(CheckpointNotFoundError, match=rf"number 2 of {len(files)} is missing"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    random_model().config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"config\.json, but no weights"):
        open_checkpoint(tmp_path)


# ---- several ranks -----------------------------------------------------------------------------------


def test_two_ranks_say_what_one_says(tmp_path: Path) -> None:
    """From each of three ways to save the same model, under torchrun."""
    ways = dict(zip(SHARDS, ("safetensors", "safetensors with index", "bin"), strict=True))
    for count, way in ways.items():
        save(random_model(), tmp_path / f"s{count}", way)
    with Llama.build(tmp_path / "s1", None, 96, 8, 1, device="cpu", dtype="float32") as llama:
        expected = json.loads(json.dumps(texts(llama)))
    assert sum(len(each["tokens"]) for each in expected["greedy"]) > 30
    assert len(set(expected["sampled"])) > 5
    run_ranks("rank_script.py", tmp_path, "shards", ranks=2).ok()
    for rank in range(2):
        found = json.loads((tmp_path / "out-2" / f"shards.{rank}.json").read_text())
        for count in ways:
            one = found[str(count)]
            assert one["size"] == 2
            assert one["sampled"] == expected["sampled"]
            for mode in ("greedy", "scored"):
                for ours, theirs in zip(one[mode], expected[mode], strict=True):
                    assert ours["generation"] == theirs["generation"]
                    assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=1e-4)
