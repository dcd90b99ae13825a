"""config.json <-> ModelArgs. A config.json with an unsupported value is refused, with the key's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from ...printable import shown
from ...sizing.args import ModelArgs
from ...sizing.family import member_of
from ...tokenizer import Tokenizer
from ..base import dtype_name
from ..files import read_json

__all__ = ["config_of", "ffn_rule", "generation_config_of", "params_of", "read_config", "trained_context"]

# transformers' defaults, for keys missing from config.json.
_NORM_EPS, _ROPE_THETA = 1e-6, 10000.0
# Upper limit of a dimension or a number of layers; ModelArgs has the exact limits.
_MOST = 1 << 24
# Key -> the values that this runtime supports.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "tie_word_embeddings": (False, True, None),
}


def read_config(folder: Path, *, max_seq_len: int, max_batch_size: int) -> tuple[ModelArgs, bool]:
    """ModelArgs from config.json, and whether input and output embeddings are tied (one shared weight).

    Raises:
        CheckpointNotFoundError, CheckpointFormatError: there is no config.json, or it is not a JSON object.
        ConfigError: another architecture, rope scaling, biases, missing or invalid values.
    """
    path = folder / "config.json"
    config = read_json(path)
    try:
        _refuse(config)
        args = ModelArgs(
            **_shape(config),
            norm_eps=config.get("rms_norm_eps", _NORM_EPS),
            rope_theta=_rope_theta(config),
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return args, bool(config.get("tie_word_embeddings"))


def _refuse(config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or ["LlamaForCausalLM"]
    if architectures != ["LlamaForCausalLM"]:
        raise ConfigError(
            f"the architecture is {shown(architectures)}; this runtime computes LlamaForCausalLM, the Code Llama family"
        )
    for key, values in _SUPPORTED.items():
        if key in config and config[key] not in values:
            raise ConfigError(
                f"{key} is {shown(config[key])}; this runtime computes {key} = {values[0]!r} only, and ignoring it"
                " would give wrong results"
            )


def _rope_theta(config: dict[str, Any]) -> Any:
    """The base of the rotary frequencies, wherever config.json names it.

    transformers 4 writes rope_theta at the top level, and rope_scaling if positions are scaled. transformers
    5 writes rope_parameters with both in it, but reads a non-empty rope_scaling in its place. A rope_theta
    inside the object that it reads takes precedence over the top-level one. transformers 4 knows only the
    top-level one and would compute another model from such a file, so values that differ are refused.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{key} is {shown(value)}; it must be an object or null")
        if value:
            _refuse_scaling(key, value)
            found[key] = value
    named = {
        f"rope_theta in {key}": value["rope_theta"] for key, value in found.items() if "rope_theta" in value
    }
    # What transformers uses if the object that it reads names none.
    outside = config.get("rope_theta", _ROPE_THETA)
    if "rope_theta" in config or (found and "rope_theta" not in next(iter(found.values()))):
        named["rope_theta" if "rope_theta" in config else "rope_theta by default"] = outside
    values = list(named.values()) or [outside]
    if any(value != values[0] for value in values):
        told = ", ".join(f"{name} is {shown(value)}" for name, value in named.items())
        raise ConfigError(
            f"{told}: releases of transformers differ in which one they take; leave only the one that the model was"
            " trained with"
        )
    return values[0]


def _refuse_scaling(key: str, value: dict[str, Any]) -> None:
    """Raise ConfigError for anything in the object, except rope_theta, that may change the frequencies."""
    kind = value.get("rope_type", value.get("type", "default"))
    factor = value.get("partial_rotary_factor", 1)
    extra = sorted(set(value) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if kind != "default" or extra or isinstance(factor, bool) or factor != 1:
        raise ConfigError(
            f"{key} asks for rope scaling ({shown(value)}); this runtime computes plain rotary positions only"
        )


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    missing = [name for name in (*names, "intermediate_size") if name not in config]
    if missing:
        raise ConfigError(f"it lacks {', '.join(missing)}; fetch the file that came with the weights")
    shape = {ours: config[theirs] for theirs, ours in names.items()}
    ffn = config["intermediate_size"]
    for name, value in (*shape.items(), ("intermediate_size", ffn)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
            raise ConfigError(f"{name} is {shown(value)}; it must be an integer from 1 to {_MOST:,}")
    head_dim = config.get("head_dim")
    if head_dim is not None and head_dim != shape["dim"] / shape["n_heads"]:
        raise ConfigError(
            f"head_dim is {shown(head_dim)}, but hidden_size {shape['dim']} / {shape['n_heads']} heads ="
            f" {shape['dim'] / shape['n_heads']:g}; this runtime splits hidden_size evenly"
        )
    multiple_of, multiplier = ffn_rule(shape["dim"], ffn)
    return {
        **shape,
        "n_kv_heads": config.get("num_key_value_heads"),
        "vocab_size": config.get("vocab_size", -1),
        "multiple_of": multiple_of,
        "ffn_dim_multiplier": multiplier,
    }


def ffn_rule(dim: int, ffn: int, key: str = "intermediate_size") -> tuple[int, float]:
    """The multiple_of and ffn_dim_multiplier from which Meta's rule computes a feed-forward dimension.

    Meta's own values are tried first, so that a model of the family gets the params.json it was published
    with.

    Raises:
        ConfigError: there are none; the message names `key`.
    """
    hidden = int(2 * 4 * dim / 3)
    largest = ffn & -ffn  # the largest power of two that divides it
    tried = [
        (256, 1.0),
        (4096, 1.3),
        (256, 1.3),
        (min(256, largest), ffn / hidden),
        (1, (ffn + 0.5) / hidden),
    ]
    for multiple_of, multiplier in tried:
        if multiple_of * -(-int(multiplier * hidden) // multiple_of) == ffn:
            return multiple_of, multiplier
    raise ConfigError(f"{key} {ffn} cannot be expressed for hidden_size {dim}")


def params_of(args: ModelArgs) -> dict[str, Any]:
    """The content of params.json."""
    params: dict[str, Any] = {
        "dim": args.dim,
        "n_layers": args.n_layers,
        "n_heads": args.n_heads,
        "multiple_of": args.multiple_of,
        "ffn_dim_multiplier": args.ffn_dim_multiplier,
        "norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "vocab_size": args.vocab_size,
    }
    if args.kv_heads != args.n_heads:
        params["n_kv_heads"] = args.kv_heads
    return {key: value for key, value in params.items() if value is not None}


def trained_context(args: ModelArgs) -> int:
    """Context length of the training, for max_position_embeddings in config.json; guessed from rope_theta.

    Without a raised rope_theta it is 2048, as in transformers' own conversion; for a 70B (Instruct) it is
    4096.
    """
    member = member_of(args)
    if args.rope_theta > 1e4:
        return 16384
    return 4096 if member is not None and member.name == "70B" else 2048


def config_of(args: ModelArgs, dtype: torch.dtype, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json, for transformers 4 and 5."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": args.dim,
        "intermediate_size": args.ffn_dim,
        "num_hidden_layers": args.n_layers,
        "num_attention_heads": args.n_heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "vocab_size": args.vocab_size,
        "max_position_embeddings": trained_context(args),
        "rms_norm_eps": args.norm_eps,
        "rope_theta": args.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "torch_dtype": dtype_name(dtype),
    }


def generation_config_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of generation_config.json: bos, and every id that ends an answer."""
    ends = [tokenizer.eos_id]
    ends += [i for i in (tokenizer.eot_id, tokenizer.step_id) if i is not None]
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else ends[0]}
