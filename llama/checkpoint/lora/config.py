"""adapter_config.json: what PEFT wrote about an adapter. Whatever would change the merged weights and is not
computed here is refused, with the key's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...printable import shown
from ..files import read_json
from .patterns import Patterns

__all__ = ["CONFIG", "LoraConfig", "read_config"]

CONFIG = "adapter_config.json"
_MERGE = "merge it in PEFT (merge_and_unload) and load the merged folder"
# Keys that say how to train, or where the adapter comes from: they do not change what it computes.
_INERT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core"),
        *("peft_version", "revision", "runtime_config", "task_type", "qalora_group_size"),
        *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
    }
)
# Keys that must be false, null or empty, and what they ask for.
_REFUSED = {
    "use_dora": "DoRA, which also scales the length of each row",
    "lora_bias": "a bias, which this model does not have",
    "fan_in_fan_out": "transposed weights, which this model does not have",
    "layer_replication": "layers that are used several times",
    "trainable_token_indices": "single rows of the embedding",
    "target_parameters": "parameters that belong to no linear module",
    "alora_invocation_tokens": "an adapter that begins to work within a prompt (aLoRA), which no merged weight can do",
    "arrow_config": "a choice between adapters for each token (Arrow), which no merged weight can do",
    "use_qalora": "QA-LoRA, which adds up the inputs of a group",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)",
    "kasa_config": "KaSA, which also changes the base weights",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "the layers of Megatron",
    "ensure_weight_tying": "one update of embedding and output together",
}
# Beginnings of matrices that leave the base weights as they are. Any other takes something away from them.
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
_TYPES = {
    "ADALORA": "AdaLoRA",
    "IA3": "IA3",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "PROMPT_TUNING": "prompt tuning",
    "PREFIX_TUNING": "prefix tuning",
    "P_TUNING": "p-tuning",
}
# Keys that are read here.
_READ = frozenset(
    {
        *(
            "peft_type",
            "init_lora_weights",
            "bias",
            "r",
            "lora_alpha",
            "use_rslora",
            "rank_pattern",
            "alpha_pattern",
        ),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    }
)
# A 70B has 562 matrices. Each name is compared with each of them.
_MOST_RANK, _MOST_NAMES = 1 << 16, 4096


@dataclass(frozen=True)
class LoraConfig:
    """What of adapter_config.json decides the merged weights.

    Args:
        path: the file, for messages.
        rank, alpha: of the modules that no pattern names.
        ranks, alphas: rank_pattern and alpha_pattern.
        rslora: the update is scaled by alpha / sqrt(rank), otherwise by alpha / rank.
        targets: the names in target_modules; None for a regular expression, which is not run.
        all_linear: target_modules is "all-linear": all matrices of the layers.
        excluded: the names in exclude_modules; None for a regular expression.
        layers: layers_to_transform; None for all.
        saved: modules_to_save.
    """

    path: Path
    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: tuple[str, ...] | None
    all_linear: bool
    excluded: tuple[str, ...] | None
    layers: tuple[int, ...] | None
    saved: tuple[str, ...]
    _patterns: tuple[Patterns, Patterns] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ranks = Patterns(self.ranks, f"rank_pattern in {self.path}")
        object.__setattr__(self, "_patterns", (ranks, Patterns(self.alphas, f"alpha_pattern in {self.path}")))

    def rank_of(self, module: str) -> int:
        """The rank of a module, such as model.layers.0.mlp.up_proj."""
        found = self._patterns[0].first(module)
        return self.rank if found is None else self.ranks[found]

    def scaling_of(self, module: str) -> float:
        """By what the product of a module's two matrices is multiplied."""
        found = self._patterns[1].first(module)
        alpha = self.alpha if found is None else self.alphas[found]
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, module: str) -> bool | None:
        """Whether the config says that a module has an update; None where only a regular expression does."""
        if any(_ends(module, each) for each in self.excluded or ()) or self.saves(module):
            return False
        if self.excluded is None or not (self.all_linear or self.targets is not None):
            return None
        parts = module.split(".")
        in_layer = parts[:2] == ["model", "layers"]
        if self.all_linear:
            return in_layer and not parts[-1].endswith("norm")
        if module in (self.targets or ()):
            return True
        if self.layers is not None and (not in_layer or int(parts[2]) not in self.layers):
            return False
        return any(_ends(module, each) for each in self.targets or ())

    def saves(self, module: str) -> bool:
        """Whether the config says that a module, or one that it is part of, is replaced as a whole.

        PEFT compares the ends of names as texts, so "norm" is all norms.
        """
        parts = module.split(".")
        inside = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return any(outer.endswith(each) for outer in inside for each in self.saved)


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def read_config(folder: Path) -> LoraConfig:
    """The adapter's config.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError: there is no adapter_config.json, or it is not a JSON object.
        ConfigError: another kind of adapter, an option that is not supported, or values out of range.
    """
    path = folder / CONFIG
    config = read_json(path)
    try:
        _refuse(config)
        targets = config.get("target_modules")
        excluded = config.get("exclude_modules")
        return LoraConfig(
            path,
            _rank("r", config.get("r")),
            _alpha("lora_alpha", config.get("lora_alpha")),
            bool(config.get("use_rslora")),
            {key: _rank(f"{key} in rank_pattern", each) for key, each in _pairs(config, "rank_pattern")},
            {key: _alpha(f"{key} in alpha_pattern", each) for key, each in _pairs(config, "alpha_pattern")},
            None if isinstance(targets, str) else _names("target_modules", targets),
            targets == "all-linear",
            None if isinstance(excluded, str) and excluded else _names("exclude_modules", excluded or None),
            _layers(config),
            _names("modules_to_save", config.get("modules_to_save")),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _refuse(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        name = _TYPES.get(kind, shown(kind)) if isinstance(kind, str) else shown(kind)
        raise ConfigError(
            f"peft_type says {name}; this runtime merges adapters of the type LORA. Else {_MERGE}"
        )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ConfigError(
            f"init_lora_weights is {shown(start)}: training began by taking something away from the base weights, which"
            " the base checkpoint still has. Save the adapter again in PEFT with"
            " path_initial_model_for_weight_conversion, which makes it a plain one"
        )
    if config.get("bias", "none") not in ("none", None):
        raise ConfigError(
            f"bias is {shown(config['bias'])}; this model has no biases. Train with bias = none"
        )
    for key, meaning in _REFUSED.items():
        if config.get(key):
            raise ConfigError(
                f"{key} is {shown(config[key])}: {meaning}. This runtime merges plain LoRA; {_MERGE}"
            )
    unknown = [key for key, value in config.items() if value and key not in _INERT | _READ]
    if unknown:
        raise ConfigError(
            f"{shown(unknown[0])} is {shown(config[unknown[0]])}, an option that this runtime does not know; {_MERGE}"
        )


def _rank(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_RANK:
        raise ConfigError(f"{name} is {shown(value)}; a rank is an integer from 1 to {_MOST_RANK:,}")
    return value


def _alpha(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ConfigError(f"{name} is {shown(value)}; it must be a finite number")
    return float(value)


def _pairs(config: dict[str, Any], key: str) -> Iterable[tuple[str, Any]]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {shown(value)}; it must be an object")
    _check_count(key, value)
    return value.items()


def _names(key: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ConfigError(f"{key} is {shown(value)}; it must be a list of names")
    _check_count(key, value)
    return tuple(value)


def _check_count(key: str, names: Sized) -> None:
    if len(names) > _MOST_NAMES:
        raise ConfigError(f"{key} has {len(names):,} names; no Llama has more than {_MOST_NAMES:,} modules")


def _layers(config: dict[str, Any]) -> tuple[int, ...] | None:
    value = config.get("layers_to_transform")
    if config.get("layers_pattern") not in (None, [], "", "layers", ["layers"]):
        raise ConfigError(
            f"layers_pattern is {shown(config['layers_pattern'])}; this model's layers are called layers"
        )
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in layers):
        raise ConfigError(f"layers_to_transform is {shown(value)}; it must be the numbers of layers")
    _check_count("layers_to_transform", layers)
    return tuple(layers)
