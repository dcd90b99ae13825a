"""Hugging Face's layout: config.json, and whole tensors in *.safetensors or pytorch_model*.bin.

Besides the names, two things differ from Meta's layout. No tensor is split over files. And the rows of q_proj
and k_proj are permuted so that the two rows of a rotary pair lie half a head apart: row 2i + p of a head in
Meta's order is row p * D/2 + i here (D = head_dim). Reading undoes that, for n_heads heads of q_proj and
kv_heads heads of k_proj; v_proj is the same in both.

Linear modules may be quantized, in a scheme that hf_schemes.py finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ...errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from ...kernels.quantized import Blocks, Form
from ...printable import shown
from ..base import Checkpoint, Part, Range, checked_dtype
from ..files import is_there, read_json, some
from ..weight_files.pth import open_pth
from ..weight_files.safetensors import open_safetensors
from .bitsandbytes import Requantized
from .hf_config import read_config
from .hf_schemes import quantized_matrices, scheme_of
from .meta_files import with_vocab

__all__ = ["COMPANION_FILES", "HuggingFaceCheckpoint", "hf_name", "rotary_heads", "weight_files"]

_PARTS = {
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
_WHOLE = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Files beside weights and config.json that describe the model.
COMPANION_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Written by older exporters; the runtime computes these from rope_theta, in float32.
_IGNORED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
# What tensors beside quantized ones may be.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def hf_name(name: str) -> str:
    """Meta's name of a tensor -> Hugging Face's, e.g. model.layers.3.self_attn.q_proj.weight."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part, *rest = name.removesuffix(".weight").split(".")
    return f"model.layers.{layer}.{_PARTS['.'.join((part, *rest))]}.weight"


def rotary_heads(name: str, n_heads: int, kv_heads: int) -> int:
    """The number of heads whose rows are permuted; 0 for a tensor that is the same in both layouts."""
    return {"wq": n_heads, "wk": kv_heads}.get(name.split(".")[-2], 0)


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a folder, and the index's map from tensor to file (None without an index).

    If a folder has both safetensors and pytorch_model*.bin, safetensors are used.

    Raises:
        CheckpointNotFoundError: there are no weights, or a file that the index names is missing.
        CheckpointFormatError: the index is malformed, or names a file outside the folder.
    """
    for index, single, pattern in (
        (_INDEXES[0], "model.safetensors", "*.safetensors"),
        (_INDEXES[1], "pytorch_model.bin", "pytorch_model*.bin"),
    ):
        # Single file first, as in transformers, which leaves an old index behind when it saves a model again
        # as one file.
        if is_there(folder / single):
            return [folder / single], None
        if is_there(folder / index):
            where = _weight_map(folder / index)
            return [folder / name for name in sorted(set(where.values()))], where
        # Some vendors add the same weights again under other names, as consolidated*.safetensors.
        found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith("consolidated")]
        if found:
            _check_numbers(found)
            return found, None
    raise CheckpointNotFoundError(
        f"{folder} has a config.json, but no weights: no *.safetensors and no pytorch_model*.bin; download them"
    )


def _weight_map(path: Path) -> dict[str, str]:
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointFormatError(f"{path} has no weight_map from tensors to files; fetch it again")
    for name in sorted(set(where.values())):
        if name != Path(name).name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise CheckpointFormatError(
                f"{path} names the file {shown(name)}, which is not a plain file name: an index may only name files"
                " of its own folder. It was damaged, or made to do harm"
            )
        if not is_there(path.parent / name):
            raise CheckpointNotFoundError(
                f"{path.name} names {shown(name)}, but {path.parent} has no such file; download it"
            )
    return where


def _check_numbers(files: list[Path]) -> None:
    """Numbered files without an index, e.g. "00001-of-00003": all three must be there."""
    matches = [re.search(r"-(\d+)-of-(\d+)\.", path.name) for path in files]
    numbers = {int(match[1]) for match in matches if match}
    totals = {int(match[2]) for match in matches if match}
    total = max(totals, default=0)
    # A name can claim any number of files; count only far enough to find the first three that are missing.
    counted = range(1, min(total, len(numbers) + 3) + 1)
    missing = [str(number) for number in counted if number not in numbers]
    if missing:
        raise CheckpointNotFoundError(
            f"{files[0].parent} has {len(files)} weight files, but number {', '.join(missing[:3])} of {total} is"
            " missing; download it again"
        )


class HuggingFaceCheckpoint(Checkpoint):
    """A folder in Hugging Face's layout: its files are mapped, and its config, keys and shapes checked.

    Args:
        folder: holds config.json and the weight files.
        max_seq_len, max_batch_size: limits to put into `args`.
        agree: has no effect, since every weight is stored once.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, CheckpointMismatchError: with the names of file and
            tensor.
        ConfigError: config.json asks for something that this runtime does not support; the message names it.
    """

    layout = "Hugging Face"
    config_name = "config.json"

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        """Whether the folder has a config.json or an index of weight files."""
        return any(is_there(folder / name) for name in (cls.config_name, *_INDEXES))

    def __init__(
        self, folder: Path, max_seq_len: int = 2048, max_batch_size: int = 1, *, agree: bool = True
    ) -> None:
        self.folder = folder
        args, tied = read_config(folder, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
        scheme = scheme_of(folder)
        self.files, where = weight_files(folder)
        self.mapped = []
        self._tensors: dict[str, tuple[Path, torch.Tensor]] = {}
        for path in self.files:
            opened = open_safetensors(path) if path.suffix == ".safetensors" else open_pth(path)
            self.mapped.append(opened.file)
            self._take(path, opened, where)
        shared = self._tensors.get(_WHOLE["tok_embeddings.weight"])
        if tied and shared is not None:
            # Even if lm_head.weight is stored too: transformers ties them when it loads.
            self._tensors[_WHOLE["output.weight"]] = shared
        self.args = with_vocab(args, len(self._embedding()), self.config_name)
        found = quantized_matrices(scheme, self._tensors, self._matrix_shapes(), self.windows)
        self._matrices = {name: matrix for name, (matrix, _) in found.items()}
        self._packed = {name: names for name, (_, names) in found.items()}
        self.dtype = checked_dtype(self._embedding().dtype, folder)
        if scheme is not None:
            # Also beside bfloat16: float16 has three more bits, and these schemes' own programs compute in it.
            self.quantization, self.dtype = scheme.title, torch.float16
            self.notes.extend(scheme.notes(self._matrix_shapes()[name] for name in found))
        self._check(where)

    def _take(self, path: Path, opened: Mapping[str, torch.Tensor], where: dict[str, str] | None) -> None:
        for name, tensor in opened.items():
            if _IGNORED.fullmatch(name):
                continue
            if name in self._tensors:
                raise CheckpointMismatchError(
                    f"{self.folder}: {name} is in {self._tensors[name][0].name} and again in {path.name}; files of"
                    " different downloads may have been mixed, remove those that do not belong"
                )
            if where is not None and where.get(name) != path.name:
                told = f"says it is in {where[name]}" if name in where else "does not know it"
                raise CheckpointMismatchError(
                    f"{path} holds {name}, but the index {told}; download both again"
                )
            self._tensors[name] = path, tensor

    def _embedding(self) -> torch.Tensor:
        name = _WHOLE["tok_embeddings.weight"]
        _, embedding = self._tensors.get(name, (None, None))
        if embedding is None or embedding.dim() != 2:
            raise CheckpointMismatchError(f"{self.folder} has no tensor {name} of two dimensions")
        return embedding

    def _matrix_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all matrices that can be quantized, by Hugging Face's names."""
        return {
            hf_name(name): shape
            for name, shape in self.shapes.items()
            if len(shape) == 2 and name != "tok_embeddings.weight"
        }

    def _check(self, where: dict[str, str] | None) -> None:
        packed = {each for names in self._packed.values() for each in names}
        shapes = {hf_name(name): shape for name, shape in self.shapes.items()}
        problems, mixed = [], []
        missing = [name for name in shapes if name not in self._tensors and name not in self._matrices]
        if missing:
            problems.append(f"it lacks {some(missing)}")
        promised = [
            name for name in where or {} if name not in self._tensors and not _IGNORED.fullmatch(name)
        ]
        if promised:
            problems.append(f"the index names {some(promised)}, which no file holds")
        surplus = [name for name in self._tensors if name not in shapes and name not in packed]
        if surplus:
            problems.append(f"it has tensors that this runtime does not know: {some(surplus)}")
        # Beside quantized matrices, norms and embeddings of several dtypes are common; all are converted.
        dtypes = _FLOATS if self._matrices else (self.dtype,)
        for name, shape in shapes.items():
            path, tensor = self._tensors.get(name, (None, None))
            if path is None or tensor is None or name in self._matrices:
                continue
            if tuple(tensor.shape) != shape:
                problems.append(f"{name} in {path.name} is {list(tensor.shape)}, not {list(shape)}")
            elif tensor.dtype not in dtypes:
                mixed.append(
                    f"{name} in {path.name} is {tensor.dtype}, the embedding {self._embedding().dtype}"
                )
        if mixed and not problems:
            raise CheckpointMismatchError(
                f"{self.folder} holds weights of several dtypes: {some(mixed)}. This runtime reads those of one:"
                " load it in transformers with the dtype you want and save it again"
            )
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointMismatchError(
                f"{self.folder} does not fit its config.json: {'; '.join(problems[:5])}{more}."
                " Files of different models may have been mixed; fetch them again"
            )

    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        source = self._tensors[hf_name(name)][1]
        if columns is not None:
            source = source[:, columns[0] : columns[1]]
        taken = None if columns is None else slice(0, columns[1] - columns[0])
        heads = rotary_heads(name, self.args.n_heads, self.args.kv_heads)
        if not heads:
            yield Part(source[rows[0] : rows[1]], slice(0, rows[1] - rows[0]), taken)
            return
        dim = source.shape[0] // heads
        for head in range(rows[0] // dim, -(-rows[1] // dim)):
            first, last = max(rows[0], head * dim), min(rows[1], (head + 1) * dim)
            for parity in (0, 1):
                # The rotary pairs of this head whose row of this parity is in the window.
                start = -(-(first - head * dim - parity) // 2)
                stop = -(-(last - head * dim - parity) // 2)
                if start < stop:
                    at = head * dim + parity * (dim // 2)
                    to = head * dim + 2 * start + parity - rows[0]
                    yield Part(source[at + start : at + stop], slice(to, last - rows[0], 2), taken)

    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        for name in map(hf_name, self.shapes):
            for each in self._packed.get(name, [name]):
                # Zeros in these mean something; opening has checked all of them.
                if not each.endswith((".g_idx", ".bias", ".weight_format")):
                    yield each, *self._tensors[each]

    # ---- quantized weights ----

    @property
    def is_quantized(self) -> bool:
        return bool(self._matrices)

    def is_mapped(self, name: str) -> bool:
        return hf_name(name) not in self._matrices

    def dtype_of(self, name: str) -> torch.dtype:
        return self._tensors[hf_name(name)][1].dtype if self.is_mapped(name) else torch.float32

    def form(self, name: str, columns: Range) -> Form | None:
        matrix = self._matrices.get(hf_name(name))
        return None if matrix is None else matrix.form(columns)

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        stored, order = self._stored_rows(name, rows)
        found = self._matrices[hf_name(name)].blocks(stored, columns)
        if order is None:
            return found
        zeros = None if found.zeros is None else found.zeros[order]
        return Blocks(found.form, found.codes[order], found.scales[order], zeros)

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        matrix = self._matrices[hf_name(name)]
        if columns is None or not isinstance(matrix, Requantized):
            return super().compute(name, rows, columns)
        stored, order = self._stored_rows(name, rows)
        found = matrix.values(stored, columns)
        return found if order is None else found[order]

    def _stored_rows(self, name: str, rows: Range) -> tuple[Range, torch.Tensor | None]:
        """The rows of the file that hold `rows` in Meta's order, and where each is among them (None: as they are)."""
        heads = rotary_heads(name, self.args.n_heads, self.args.kv_heads)
        if not heads or rows[0] == rows[1]:
            return rows, None
        dim = self.shapes[name][0] // heads
        row = torch.arange(*rows)
        place = row // dim * dim + row % 2 * (dim // 2) + row % dim // 2
        first = int(place.min())
        return (first, int(place.max()) + 1), place - first
