"""`codellama convert`: writes a checkpoint in another layout, number of shards or dtype."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .arguments import DTYPES, add_adapter, add_quantize, add_tokenizer, path, positive, torch_dtype
from .terminal import out

if TYPE_CHECKING:
    from ..checkpoint import Checkpoint
    from ..checkpoint.convert import Converted

SUMMARY = "change layout, number of shards or dtype; quantize"
DESCRIPTION = """
    Write a checkpoint in another layout, number of shards or dtype, or as a GGUF file, which llama.cpp loads too.
    Memory use stays small for any model. DST appears once all of it is written, read back and opened. A conversion
    that is stopped leaves nothing; one that is killed leaves .DST.unfinished, which no loader takes for a checkpoint
    and the next run removes.

      codellama convert CodeLlama-13b/ CodeLlama-13b-mp1/ --to meta --mp 1
      codellama convert CodeLlama-7b/ CodeLlama-7b-hf/ --to hf
      codellama convert CodeLlama-7b-hf/ CodeLlama-7b/ --to meta
      codellama convert CodeLlama-7b/ merged/ --to meta --adapter my-lora/
      codellama convert CodeLlama-7b/ codellama-7b-int4.gguf --quantize int4
      codellama convert codellama-7b.Q4_K_M.gguf CodeLlama-7b-hf/ --to hf

    (The runtime itself needs no conversion: it loads any of these on any number of ranks, and quantizes while it does.)
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=path, metavar="SRC", help="a folder in Meta's or Hugging Face's layout, or a GGUF file"
    )
    parser.add_argument(
        "target", type=path, metavar="DST", help="the folder to make, or the file, if its name ends in .gguf"
    )
    parser.add_argument(
        "--to", choices=("meta", "hf", "gguf"), help="the layout of DST (default: gguf if DST ends in .gguf)"
    )
    parser.add_argument(
        "--mp",
        type=positive,
        metavar="N",
        help="shards in Meta's layout (default: as in SRC; from Hugging Face as many as Meta ships, or 1)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: as stored; float16 if they are quantized, and become plain)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace DST if it holds a checkpoint and nothing else"
    )
    add_tokenizer(parser, "SRC")
    add_adapter(parser)
    add_quantize(parser)
    parser.set_defaults(usage=parser.error)


def run(options: argparse.Namespace) -> int:
    from ..checkpoint import open_checkpoint
    from ..sizing.budget import amount

    layout = _layout(options)
    source = open_checkpoint(options.source, adapter=options.adapter, quantize=options.quantize)
    done = _convert(source, layout, options)
    if layout == "gguf":
        out(f"Wrote {amount(done.nbytes)} in {_kind(done, source)} to {done.folder}")
        return 0
    out(f"Wrote {amount(done.nbytes)} of weights in {_dtype(done)} to {done.folder}:")
    for file in done.files:
        out(f"  {file}")
    return 0


def _layout(options: argparse.Namespace) -> str:
    """The layout to write. Wrong usage ends here."""
    is_file = options.target.suffix == ".gguf"
    layout: str | None = options.to or ("gguf" if is_file else None)
    if layout is None:
        options.usage("name the layout of DST by --to, or a DST that ends in .gguf")
    assert layout is not None
    if is_file != (layout == "gguf"):
        why = "ends in .gguf, which is a file's name" if is_file else "does not end in .gguf"
        options.usage(f"{options.target} {why}, but --to says {layout}; change one of the two")
    if options.quantize is not None and layout != "gguf":
        options.usage(f"--to {layout} writes plain weights; give --quantize with a DST that ends in .gguf")
    if options.mp is not None and layout == "gguf":
        options.usage("a GGUF file has no model-parallel shards; leave --mp out")
    return layout


def _convert(source: Checkpoint, layout: str, options: argparse.Namespace) -> Converted:
    from ..checkpoint.convert import convert, convert_to_gguf, gguf_bytes
    from ..checkpoint.progress import Progress
    from ..sizing.budget import parameter_count

    dtype = torch_dtype(options.dtype) or source.dtype
    if layout == "gguf":
        return convert_to_gguf(
            source,
            options.target,
            tokenizer_path=options.tokenizer,
            dtype=dtype,
            force=options.force,
            progress=Progress(gguf_bytes(source, dtype), "converting"),
        )
    return convert(
        source,
        options.target,
        layout=layout,
        tokenizer_path=options.tokenizer,
        shards=options.mp,
        dtype=dtype,
        force=options.force,
        progress=Progress(parameter_count(source.args) * dtype.itemsize, "converting"),
    )


def _kind(done: Converted, source: Checkpoint) -> str:
    from ..sizing.budget import parameter_count

    if not source.is_quantized:
        return _dtype(done)
    return f"{_formats(done)} ({done.nbytes * 8 / parameter_count(source.args):.2f} bits a weight)"


def _formats(done: Converted) -> str:
    """What a GGUF file came out as: what had no block of its own there is another type now than in the source."""
    from ..checkpoint import open_checkpoint

    return open_checkpoint(done.folder).quantization or _dtype(done)


def _dtype(done: Converted) -> str:
    from ..checkpoint.base import dtype_name

    return dtype_name(done.dtype)
