"""Laws of blocks that go straight from the file into memory: at every level they have the bits that the blocks in
torch have, for each type, for rows and columns of any number, on any number of ranks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from compiled_levels import AT, opened, use
from gguf_files import BLOCKED, QUANTIZED, name_of, random_blocks, save_gguf, size_of
from tiny_models import random_weights
from tiny_tokenizers import tiny_tokenizer

from llama.checkpoint import GgufCheckpoint, base, load_weights, open_checkpoint
from llama.checkpoint.layouts import gguf
from llama.checkpoint.weight_files.gguf_types import TYPES
from llama.distributed.parallel import Parallel
from llama.errors import CheckpointFormatError
from llama.kernels.native import UNPACKED
from llama.kernels.quantized import FORMATS, Blocks, Form, RawRows, form_of
from llama.kernels.quantized_weights import Quantized
from llama.kernels.weights import PackedWeight
from llama.model import Transformer

CPU = torch.device("cpu")
KINDS = {kind.name: (number, kind) for number, kind in TYPES.items()}
TOTAL = 1024
# The first may lie within a block of 256, and the last too; widths are no multiple of a cache line, or less than one.
COLUMNS = [(0, 1024), (0, 256), (256, 768), (32, 1024), (96, 160), (224, 544), (992, 1024), (512, 928)]
# The first, and how many: 16 lie together in memory.
ROWS = [(0, 16), (0, 5), (3, 1), (0, 72), (16, 37)]

each_kind = pytest.mark.parametrize("kind", QUANTIZED)


def bits(weight: PackedWeight) -> list[torch.Tensor]:
    parts = (weight.codes, weight.scales, weight.zeros)
    return [part.view(torch.uint8) for part in parts if part is not None]


def same(a: PackedWeight, b: PackedWeight) -> bool:
    return all(torch.equal(x, y) for x, y in zip(bits(a), bits(b), strict=True))


def dirty(layout: Quantized, shape: tuple[int, int], columns: tuple[int, int]) -> PackedWeight:
    """A weight in memory that held something else before."""
    weight = layout.empty(
        shape, form_of(layout.kind, columns, FORMATS[layout.kind].group or 32, TOTAL), torch.float16
    )
    for part in bits(weight):
        part.fill_(0xA5)
    return weight


@cache
def window_of(kind: str) -> torch.Tensor:
    """Rows of blocks within longer rows, as a window of a file has them; some scales are 0, subnormal, negative or
    large."""
    _, nbytes = size_of(kind)
    source = torch.from_numpy(random_blocks(kind, 72, TOTAL + 256)).view(72, -1, nbytes)
    for half in KINDS[kind][1].halves:
        for row, value in enumerate((0.0, 6e-8, -3e-5, -0.0, 500.0)):
            source.view(torch.float16)[row, :, half // 2] = value
    return source


@cache
def read_of(kind: str, columns: tuple[int, int], first: int, rows: int) -> tuple[Form, RawRows, Blocks]:
    """Some rows of that window as they are in the file, and as blocks in torch: the same for every level."""
    length, _ = size_of(kind)
    stored = KINDS[kind][1]
    form = form_of(stored.kind or "int8", columns, FORMATS[stored.kind or "int8"].group or 32, TOTAL)
    data = window_of(kind)[first : first + rows, columns[0] // length : -(-columns[1] // length)]
    skip = columns[0] % length
    return form, RawRows(kind, data, skip), gguf._blocks(data, stored, form, skip)


@pytest.mark.parametrize("level", AT)
@each_kind
def test_raw_rows_have_the_bits_of_blocks(kind: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert UNPACKED[kind] == KINDS[kind][0]
    for threads, columns in enumerate(COLUMNS):
        # Each three times, with other columns.
        for first, rows in (ROWS[threads % 5], ROWS[(threads + 2) % 5]):
            form, raw, blocks = read_of(kind, columns, first, rows)
            layout = Quantized(form.format, form.group, opened(level))
            wanted = dirty(layout, (rows, form.columns), columns)
            layout.write(wanted, blocks, 0)
            found = dirty(layout, (rows, form.columns), columns)
            assert layout.takes_raw(raw)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "get_num_threads", lambda threads=threads: 1 + threads % 3)
                assert layout.write_raw(found, raw, 0)
            assert same(found, wanted), (columns, rows)
    form, raw, blocks = read_of(kind, columns, 0, 72)
    parts = dirty(layout, (72, form.columns), columns)
    for first, last in ((0, 32), (32, 48), (48, 72)):
        assert layout.write_raw(parts, RawRows(kind, raw.data[first:last], raw.skip), first)
    layout.write(wanted := dirty(layout, (72, form.columns), columns), blocks, 0)
    assert same(parts, wanted)


@pytest.mark.parametrize("level", AT)
@each_kind
def test_a_scale_that_is_not_finite_is_told(kind: str, level: str) -> None:
    """In any block of the window, and nowhere beside it."""
    _, stored = KINDS[kind]
    length, nbytes = size_of(kind)
    columns = 256, 768
    form = form_of(stored.kind or "int8", columns, FORMATS[stored.kind or "int8"].group or 32, TOTAL)
    layout = Quantized(form.format, form.group, opened(level))
    clean = torch.from_numpy(random_blocks(kind, 20, TOTAL)).view(20, -1, nbytes)
    first, last = columns[0] // length, columns[1] // length
    for half in stored.halves:
        for row, block in ((0, first), (19, last - 1), (7, first), (0, first - 1), (19, last)):
            for value in (torch.nan, torch.inf, -torch.inf):
                source = clean.clone()
                source.view(torch.float16)[row, block, half // 2] = value
                weight = layout.empty((20, form.columns), form, torch.float16)
                finite = layout.write_raw(weight, RawRows(kind, source[:, first:last], 0), 0)
                assert finite == (not first <= block < last)


def test_a_weight_too_large_for_a_scale_is_told() -> None:
    """A float16 holds d, and no longer d times its factor / 127."""
    raw = torch.from_numpy(random_blocks("Q6_K", 16, 256)).view(16, 1, -1)
    raw[3, 0, 192:208] = 127
    raw.view(torch.float16)[3, 0, 104] = 60000.0
    form = form_of("int8", (0, 256), 32, 256)
    assert not gguf._blocks(raw, KINDS["Q6_K"][1], form, 0).scales.isfinite().all()
    layout = Quantized("int8", 32, opened(AT[0]))
    assert not layout.write_raw(layout.empty((16, 256), form, torch.float16), RawRows("Q6_K", raw, 0), 0)


# ---- loading ----

WEIGHTS = random_weights(BLOCKED, tiny_tokenizer().n_words)
MATRICES = [name for name, value in WEIGHTS.items() if value.dim() == 2 and name != "tok_embeddings.weight"]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of every type."""
    types = dict(zip(MATRICES, [*QUANTIZED, *QUANTIZED], strict=False)) | {"tok_embeddings.weight": "Q6_K"}
    path = tmp_path_factory.mktemp("unpacked") / "mixed.gguf"
    return save_gguf(path, BLOCKED, WEIGHTS, tiny_tokenizer(), types.__getitem__)


def packed(path: Path, parallel: Parallel) -> dict[str, PackedWeight]:
    checkpoint = open_checkpoint(path, max_seq_len=64)
    with torch.device("meta"):
        model = Transformer(checkpoint.args, parallel=parallel)
    load_weights(model, checkpoint, CPU, torch.float16)
    modules = model.named_modules()
    return {name: module.packed for name, module in modules if hasattr(module, "packed")}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_load_what_they_load_through_blocks(
    mixed: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(AT[0], monkeypatch)
    monkeypatch.setattr(base, "_WINDOW", 5000)  # several windows for a matrix
    for rank in range(size):
        with monkeypatch.context() as patch:

            def none(*_: object) -> None:
                raise AssertionError("blocks were made in torch")

            patch.setattr(GgufCheckpoint, "blocks", none)
            found = packed(mixed, Parallel(rank, size))
        with monkeypatch.context() as patch:
            patch.setattr(GgufCheckpoint, "raw", lambda *_: None)
            wanted = packed(mixed, Parallel(rank, size))
        assert found.keys() == wanted.keys()
        assert all(same(found[name], wanted[name]) for name in wanted if wanted[name].is_quantized)
        assert sum(each.is_quantized for each in wanted.values()) == len(MATRICES)


def test_loading_names_rows_whose_scales_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(AT[0], monkeypatch)
    name = "layers.0.attention.wo.weight"
    for kind in QUANTIZED:
        raw = random_blocks(kind, 256, 256)
        raw[100] = 0xFF  # among them every scale
        path = save_gguf(
            tmp_path / kind, BLOCKED, WEIGHTS, tiny_tokenizer(), more={name_of(name): (raw, kind)}
        )
        with pytest.raises(
            CheckpointFormatError, match=r"attn_output\.weight has a scale that is NaN or infinite"
        ):
            packed(path, Parallel())


def test_a_file_that_is_cut_under_way_is_an_error(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is looked at before each window, so that no lost byte is touched."""
    use(AT[0], monkeypatch)
    path = tmp_path / "cut.gguf"
    path.write_bytes(mixed.read_bytes())
    monkeypatch.setattr(base, "_WINDOW", 5000)
    write = Quantized.write_raw

    def cutting(self: Quantized, weight: PackedWeight, raw: RawRows, row: int) -> bool:
        done = write(self, weight, raw, row)
        with path.open("r+b") as file:
            file.truncate(5000)
        return done

    monkeypatch.setattr(Quantized, "write_raw", cutting)
    with pytest.raises(CheckpointFormatError, match="was cut from"):
        packed(path, Parallel())
