"""GGUF as a layout: hyperparameters, tokenizer and all weights in one file, or in one that was split.

Names differ from Meta's, rows do not: wq and wk are in Meta's order, with rotary pairs side by side. (llama.cpp's
converter undoes Hugging Face's permutation; the graph rotates neighbours.) Matrices may be quantized, each in a type
of its own. Blocks of three types are taken as they are, the others become int8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from ...errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    ConfigError,
    TokenizerError,
)
from ...kernels.quantized import BLOCK, FORMATS, Blocks, Form, RawRows, form_of, to_int8
from ...sizing.budget import amount
from ...tokenizer import Tokenizer
from ..base import Checkpoint, Part, Range
from ..files import some
from ..weight_files.gguf import GgufTensor, open_gguf
from ..weight_files.gguf_split import part_of, split_files
from ..weight_files.gguf_types import GgufType, codes_of, k_factors, scales_of, values_of
from .gguf_config import FILE_TYPES, args_of
from .gguf_tokenizer import has_tokenizer, pieces_of, tokenizer_model
from .meta_files import with_vocab

__all__ = ["GgufCheckpoint", "gguf_name"]

_PARTS = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}
_EMBEDDING, _OUTPUT = "tok_embeddings.weight", "output.weight"
_WHOLE = {
    _EMBEDDING: "token_embd.weight",
    "norm.weight": "output_norm.weight",
    _OUTPUT: "output.weight",
}
# Factors of the rotary frequencies, one for each pair of a head; all 1 where nothing is scaled.
_ROPE_FACTORS = "rope_freqs.weight"
# Weights that are computed in float32 at a time: they stay in the CPU's caches (2 times as fast as 4 million).
_AT_ONCE = 1 << 18
# Weight files of other layouts, beside which a GGUF does not count.
_OTHERS = ("*.safetensors", "*.pth", "pytorch_model*.bin")


def gguf_name(name: str) -> str:
    """Meta's name of a tensor -> GGUF's, e.g. blk.3.attn_q.weight."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, layer, part, *rest = name.removesuffix(".weight").split(".")
    return f"blk.{layer}.{_PARTS['.'.join((part, *rest))]}.weight"


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or the files of one that was split: mapped, and their metadata, names and shapes checked.

    Args:
        folder: the file, any file of a split set, or a folder that holds one model.
        max_seq_len, max_batch_size: limits to put into `args`.
        agree: has no effect, since every weight is stored once.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, CheckpointMismatchError: with the names of file and
            tensor.
        ConfigError: the metadata ask for something that this runtime does not support; the message names it.
    """

    layout = "GGUF"

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        """Whether the folder has GGUF files, and no weights in another layout."""
        return any(folder.glob("*.gguf")) and not any(any(folder.glob(each)) for each in _OTHERS)

    def __init__(
        self, folder: Path, max_seq_len: int = 2048, max_batch_size: int = 1, *, agree: bool = True
    ) -> None:
        path = _only_file(folder) if folder.is_dir() else folder
        opened = split_files(open_gguf(path))
        self.folder, self.config_name = path.parent, f"the metadata of {opened[0].path.name}"
        self.files = [each.path for each in opened]
        self.mapped = [each.mapped for each in opened]
        self.metadata = opened[0].metadata
        self._tensors: dict[str, GgufTensor] = {}
        for each in opened:
            for name, tensor in each.tensors.items():
                if name in self._tensors:
                    first = self._tensors[name].file.path.name
                    raise CheckpointMismatchError(
                        f"{path.parent}: {name} is in {first} and in {each.path.name}"
                    )
                self._tensors[name] = tensor
        try:
            args = args_of(self.metadata, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
        except ConfigError as error:
            raise ConfigError(f"{self.files[0]}: {error}") from error
        self._check_rope_factors()
        self._tensors.setdefault(_WHOLE[_OUTPUT], self._embedding())
        self.args = with_vocab(args, self._embedding().shape[0], self.config_name)
        self._check()
        self._describe()

    # ---- what it is ----

    def tokenizer(self) -> Tokenizer | None:
        if not has_tokenizer(self.metadata):
            return None
        path = self.files[0]
        try:
            model = tokenizer_model(self.metadata)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from error
        return Tokenizer.from_bytes(model, str(path))

    def details(self) -> Iterator[tuple[str, str]]:
        found: Counter[str] = Counter()
        for tensor in set(self._tensors.values()):  # a tied output is the embedding
            found[tensor.kind.name] += tensor.data.nbytes
        yield "types", ", ".join(f"{name} {amount(nbytes)}" for name, nbytes in found.most_common())

    def _embedding(self) -> GgufTensor:
        found = self._tensors.get(_WHOLE[_EMBEDDING])
        if found is None or len(found.shape) != 2:
            raise CheckpointMismatchError(
                f"{self.files[0]} has no tensor {_WHOLE[_EMBEDDING]} of two dimensions"
            )
        return found

    def _check(self) -> None:
        """Raise CheckpointMismatchError if tensors are missing, unknown, or not of the shapes of `args`."""
        shapes = {gguf_name(name): shape for name, shape in self.shapes.items()}
        problems = []
        if missing := [name for name in shapes if name not in self._tensors]:
            part = part_of(self.files[0].name) if len(self.files) == 1 else None
            named = (
                ""
                if part is None
                else f" (by its name it is one of {part[1]} files, by its metadata the only one)"
            )
            problems.append(f"it lacks {some(missing)}{named}")
        if surplus := [name for name in self._tensors if name not in shapes]:
            problems.append(f"it has tensors that this runtime does not compute: {some(surplus)}")
        for name, shape in shapes.items():
            found = self._tensors.get(name)
            if found is not None and found.shape != shape:
                problems.append(f"{name} is {list(found.shape)}, not {list(shape)}")
            elif found is not None and len(shape) == 1 and found.kind.dtype is None:
                problems.append(f"{name} is quantized ({found.kind.name})")
        pieces = pieces_of(self.metadata)
        if pieces is not None and pieces != self.args.vocab_size:
            rows = self.args.vocab_size
            problems.append(f"it has {pieces:,} tokens, but {_WHOLE[_EMBEDDING]} has {rows:,} rows")
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointMismatchError(
                f"{self.files[0]} does not fit its metadata: {'; '.join(problems[:5])}{more}. Fetch it again, or a"
                " model of the Code Llama family"
            )

    def _check_rope_factors(self) -> None:
        """Leave out factors of the rotary frequencies that change nothing; refuse others."""
        factors = self._tensors.pop(_ROPE_FACTORS, None)
        if factors is None:
            return
        factors.file.mapped.check()
        if len(factors.shape) != 1 or factors.kind.dtype is None or not bool((factors.data == 1).all()):
            raise ConfigError(
                f"{self.files[0]}: {_ROPE_FACTORS} scales the rotary frequencies; this runtime computes plain rotary"
                " positions only, and ignoring it would give wrong results"
            )

    def _describe(self) -> None:
        """Set dtype, quantization, notes and the context length."""
        told = self.metadata.get("llama.context_length")
        if isinstance(told, int) and told > 0:
            self.context_length = told
        matrices = {name: self._of(name) for name, shape in self.shapes.items() if len(shape) == 2}
        plain: Counter[torch.dtype] = Counter()
        for tensor in matrices.values():
            if tensor.kind.dtype is not None:
                plain[tensor.kind.dtype] += tensor.data.nbytes
        quantized: Counter[str] = Counter()
        for name, tensor in matrices.items():
            if name != _EMBEDDING and tensor.kind.dtype is None:
                quantized[tensor.kind.name] += tensor.data.nbytes
        if not quantized:
            self.dtype = plain.most_common(1)[0][0]
            return
        self.dtype = torch.float16
        told = self.metadata.get("general.file_type")
        named = FILE_TYPES.get(told, "") if isinstance(told, int) else ""
        fits = any(named.startswith(kind) for kind in quantized)
        self.quantization = named if fits else quantized.most_common(1)[0][0]
        changed = [
            tensor
            for name, tensor in matrices.items()
            if name != _EMBEDDING and tensor.kind.dtype is None and tensor.kind.kind is None
        ]
        if changed:
            kinds = ", ".join(sorted({each.kind.name for each in changed}))
            weights = sum(each.shape[0] * each.shape[1] for each in changed)
            taken = amount(weights * (BLOCK + 2) / BLOCK)
            self.notes.append(
                f"{len(changed)} of {len(matrices)} matrices, in {kinds}, become int8: {taken} instead of"
                f" {amount(sum(each.data.nbytes for each in changed))}"
            )

    def _of(self, name: str) -> GgufTensor:
        return self._tensors[gguf_name(name)]

    # ---- windows ----

    def is_mapped(self, name: str) -> bool:
        return self._of(name).kind.dtype is not None

    def dtype_of(self, name: str) -> torch.dtype:
        return self._of(name).kind.dtype or torch.float32

    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        source = self._of(name).data[rows[0] : rows[1]]
        if columns is None:
            yield Part(source, slice(0, rows[1] - rows[0]), None)
        else:
            yield Part(
                source[:, columns[0] : columns[1]],
                slice(0, rows[1] - rows[0]),
                slice(0, columns[1] - columns[0]),
            )

    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        for name in self.shapes:
            tensor = self._of(name)
            if name == _OUTPUT and tensor is self._embedding():
                continue
            data = tensor.data if tensor.kind.dtype is not None else scales_of(tensor.data, tensor.kind)
            yield gguf_name(name), tensor.file.path, data

    def form(self, name: str, columns: Range) -> Form | None:
        kind = self._of(name).kind
        if kind.dtype is not None or name == _EMBEDDING:
            return None
        wanted = kind.kind or "int8"
        return form_of(wanted, columns, FORMATS[wanted].group or BLOCK, self.shapes[name][1])

    def blocks(self, name: str, rows: Range, columns: Range) -> Blocks:
        kind, form = self._of(name).kind, self.form(name, columns)
        assert form is not None
        first = columns[0] // BLOCK * BLOCK
        wanted = first, first + form.columns
        found = [_blocks(part, kind, form, first % kind.length) for part in self._raw(name, rows, wanted)]
        codes = torch.cat([each.codes for each in found]) if len(found) > 1 else found[0].codes
        scales = torch.cat([each.scales for each in found]) if len(found) > 1 else found[0].scales
        zeros = None
        if found[0].zeros is not None:
            zeros = torch.cat([each.zeros for each in found if each.zeros is not None])
        self._check_finite(name, rows, scales)
        return Blocks(form, codes, scales, zeros)

    def raw(self, name: str, rows: Range, columns: Range) -> RawRows | None:
        kind, form = self._of(name).kind, self.form(name, columns)
        if form is None:
            return None
        first = columns[0] // BLOCK * BLOCK
        data = self._within(name, rows, (first, first + form.columns))
        return RawRows(kind.name, data, first % kind.length)

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        assert columns is not None
        kind = self._of(name).kind
        skip = columns[0] % kind.length
        out = torch.empty(rows[1] - rows[0], columns[1] - columns[0])
        at = 0
        for raw in self._raw(name, rows, columns):
            found = values_of(raw, kind)[:, skip : skip + out.shape[1]]
            self._check_finite(
                name, rows, scales_of(raw, kind)
            )  # few; one that is not finite spoils its block
            out[at : at + len(found)] = found
            at += len(found)
        return out

    def _raw(self, name: str, rows: Range, columns: Range) -> Iterator[torch.Tensor]:
        """The blocks that hold a window of a quantized tensor, some rows at a time."""
        kind, source = self._of(name).kind, self._within(name, rows, columns)
        step = len(source) if kind.kind else max(1, _AT_ONCE // (source.shape[1] * kind.length))
        for _, window in self.windows(source):
            for first in range(0, len(window), step):
                yield window[first : first + step]

    def _within(self, name: str, rows: Range, columns: Range) -> torch.Tensor:
        """The blocks that hold a window, as a view."""
        kind, data = self._of(name).kind, self._of(name).data
        return data[rows[0] : rows[1], columns[0] // kind.length : -(-columns[1] // kind.length)]

    def _check_finite(self, name: str, rows: Range, numbers: torch.Tensor) -> None:
        if not bool(numbers.isfinite().all()):
            raise self.not_finite(name, rows)

    def not_finite(self, name: str, rows: Range) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self._of(name).file.path}: {gguf_name(name)} has a scale that is NaN or infinite in rows {rows[0]:,}"
            f" to {rows[1]:,}; download the file again"
        )


def _only_file(folder: Path) -> Path:
    """The GGUF file of a folder, of a split set the first.

    Raises:
        CheckpointNotFoundError: there are several models.
    """
    names = sorted(path.name for path in folder.glob("*.gguf"))
    parts = {part_of(name) for name in names}
    if len(names) == 1 or (len(parts) == 1 and None not in parts):
        return folder / names[0]  # if others of its parts are missing, opening it says which
    raise CheckpointNotFoundError(
        f"{folder} holds {len(names)} GGUF files, {some(names)}; pass one of them"
        if names
        else f"{folder} holds no GGUF file"
    )


def _blocks(raw: torch.Tensor, kind: GgufType, form: Form, skip: int) -> Blocks:
    """The codes and scales in some whole blocks, from column `skip` of the first on."""
    rows, width = len(raw), form.columns
    if kind.kind is None:
        found = to_int8(values_of(raw, kind)[:, skip : skip + width])
        return Blocks(form, found.codes, found.scales)
    codes = codes_of(raw, kind).reshape(rows, -1)
    scales = scales_of(raw, kind)
    if kind.kind != "k4":
        return Blocks(form, codes, scales[..., 0].contiguous())
    zeros = k_factors(raw[..., 4:16]).reshape(rows, -1, 2)
    if form.group < kind.length:
        scales = scales.repeat_interleave(kind.length // form.group, 1)
    at = skip // form.group
    return Blocks(
        form,
        codes[:, skip : skip + width].contiguous(),
        scales[:, at : at + form.groups].contiguous(),
        zeros[:, skip // BLOCK : (skip + width) // BLOCK].contiguous(),
    )
