"""`codellama convert`: writes a checkpoint in another layout, number of shards or dtype."""

from __future__ import annotations

import argparse

from .arguments import DTYPES, add_adapter, add_tokenizer, path, positive, torch_dtype
from .terminal import out

SUMMARY = "change layout, number of shards or dtype"
DESCRIPTION = """
    Write a checkpoint in another layout, number of shards or dtype. Memory use stays small for any model.
    DST appears once all of it is written, read back and opened. A conversion that is stopped leaves nothing;
    one that is killed leaves .DST.unfinished, which no loader takes for a checkpoint and the next run removes.

      codellama convert CodeLlama-13b/ CodeLlama-13b-mp1/ --to meta --mp 1
      codellama convert CodeLlama-7b/ CodeLlama-7b-hf/ --to hf
      codellama convert CodeLlama-7b-hf/ CodeLlama-7b/ --to meta
      codellama convert CodeLlama-7b/ merged/ --to meta --adapter my-lora/

    (The runtime itself needs no conversion: it loads any of these folders on any number of ranks.)
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=path, metavar="SRC", help="a folder in Meta's or Hugging Face's layout, or a GGUF file"
    )
    parser.add_argument("target", type=path, metavar="DST", help="the folder to make")
    parser.add_argument("--to", required=True, choices=("meta", "hf"), help="the layout of DST")
    parser.add_argument(
        "--mp",
        type=positive,
        metavar="N",
        help="shards in Meta's layout (default: as in SRC; from Hugging Face as many as Meta ships, or 1)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as stored)")
    parser.add_argument(
        "--force", action="store_true", help="replace DST if it holds a checkpoint and nothing else"
    )
    add_tokenizer(parser, "SRC")
    add_adapter(parser)


def run(options: argparse.Namespace) -> int:
    from ..checkpoint import open_checkpoint
    from ..checkpoint.base import dtype_name
    from ..checkpoint.convert import convert
    from ..checkpoint.progress import Progress
    from ..sizing.budget import parameter_count

    source = open_checkpoint(options.source, adapter=options.adapter)
    dtype = torch_dtype(options.dtype) or source.dtype
    done = convert(
        source,
        options.target,
        layout=options.to,
        tokenizer_path=options.tokenizer,
        shards=options.mp,
        dtype=dtype,
        force=options.force,
        progress=Progress(parameter_count(source.args) * dtype.itemsize, "converting"),
    )
    out(f"Wrote {done.nbytes / 1e9:.2f} GB of weights in {dtype_name(done.dtype)} to {done.folder}:")
    for file in done.files:
        out(f"  {file}")
    return 0
