"""Which scheme a Hugging Face folder's weights are quantized in, and which of its matrices are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import CheckpointMismatchError, ConfigError
from ...printable import shown
from ..files import is_there, read_json, some
from .awq import Awq
from .bitsandbytes import BitsAndBytes
from .gptq import Gptq
from .hf_quantized import QuantizedMatrix, Scheme, StoredLinear, Tensors, Windows

__all__ = ["quantized_matrices", "scheme_of"]

_SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "gptq": Gptq,
    "awq": Awq,
    "bitsandbytes": BitsAndBytes,
}
# Files beside config.json, from before transformers kept the settings in it, and the quant_method they imply.
_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
# Endings of tensors that only quantized modules have.
_SIGNS = (".qweight", ".SCB", ".absmax", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def scheme_of(folder: Path) -> Scheme | None:
    """The scheme that config.json, AutoGPTQ's quantize_config.json or AutoAWQ's quant_config.json describes.

    Raises:
        ConfigError: a scheme or setting that this runtime does not read; the message names it.
        CheckpointNotFoundError, CheckpointFormatError: such a file cannot be read.
    """
    path, method = folder / "config.json", None
    config = read_json(path).get("quantization_config")
    if config is None:
        path = next((folder / name for name in _BESIDE if is_there(folder / name)), path)
        if path.name not in _BESIDE:
            return None
        config, method = read_json(path), _BESIDE[path.name]
    place = f"{path}: in quantization_config" if method is None else str(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{place}: it is {shown(config)}; it must be an object or null")
    if method is None and ("load_in_4bit" in config or "load_in_8bit" in config):
        method = "bitsandbytes"  # older releases of transformers do not name it
    method = config.get("quant_method", method)
    make = _SCHEMES.get(method) if isinstance(method, str) else None
    if make is None:
        raise ConfigError(
            f"{place}, quant_method is {shown(method)}; this runtime reads {', '.join(_SCHEMES)}, GGUF files, and plain"
            " weights"
        )
    try:
        return make(config)
    except ConfigError as error:
        raise ConfigError(f"{place} ({method}), {error}") from error


def quantized_matrices(
    scheme: Scheme | None, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], windows: Windows
) -> dict[str, tuple[QuantizedMatrix, list[str]]]:
    """The quantized ones of the matrices `shapes`, each with the names of its tensors. All are checked.

    Raises:
        CheckpointMismatchError: tensors do not fit the config, or there is no config for them.
        CheckpointFormatError: tensors hold values that no program writes.
    """
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        parts = {
            ending: tensors[f"{module}.{ending}"]
            for ending in (scheme.endings if scheme is not None else ())
            if f"{module}.{ending}" in tensors
        }
        if scheme is None or not scheme.is_quantized(parts):
            continue
        if "weight" not in scheme.endings and name in tensors:
            raise CheckpointMismatchError(
                f"{tensors[name][0].parent} holds {name} and the quantized {module}.{scheme.endings[0]}; remove the"
                " file that does not belong"
            )
        matrix = scheme.matrix(StoredLinear(module, shape, parts, windows))
        found[name] = matrix, [f"{module}.{ending}" for ending in parts]
    known = {each for _, names in found.values() for each in names}
    signs = [name for name in tensors if name.endswith(_SIGNS) and name not in known]
    if signs and scheme is None:
        raise CheckpointMismatchError(
            f"{tensors[signs[0]][0].parent} holds quantized weights ({some(signs)}), but nothing says how to read them:"
            f" config.json has no quantization_config, and there is no {' or '.join(_BESIDE)}; fetch it from where the"
            " weights came from"
        )
    if scheme is not None and not found:
        raise CheckpointMismatchError(
            f"{next(iter(tensors.values()))[0].parent} is {scheme.title} by its config, but no weight in it is"
            " quantized like that; fetch both again"
        )
    return found
