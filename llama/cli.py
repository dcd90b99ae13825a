"""The verbs of `python -m llama`, also installed as `codellama`.

Each verb imports what it needs when it runs, so that `--help` is there at once. Results go to stdout,
messages and progress to stderr. Exit codes: 0 done, 1 a named error or a failed check, 2 wrong usage,
130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import CheckpointNotFoundError, ConfigError, LlamaError

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint
    from .model import ModelArgs
    from .tokenizer import Tokenizer

__all__ = ["main"]

_DTYPES = ("bfloat16", "float16", "float32")
_FAMILY = ("7b", "13b", "34b", "70b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb -> the exit code.

    Args:
        arguments: by default those of the process.
    """
    options = _parser().parse_args(arguments)
    # A closed terminal ends a conversion as tidily as Ctrl-C.
    ends = [each for each in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if each is not None]
    before = [signal.signal(each, _terminated) for each in ends]
    try:
        code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except LlamaError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    finally:
        for each, handler in zip(ends, before, strict=True):
            signal.signal(each, handler)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def _terminated(number: int, frame: object) -> NoReturn:
    # As an exception, so that what is half done is cleaned up.
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codellama",
        description="Checkpoints of the Code Llama family: what they are, whether they are sound, other layouts.",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for add in (_add_info, _add_verify, _add_convert, _add_estimate):
        add(verbs)
    return parser


def _verb(verbs: Any, name: str, run: Callable[[Any], int], short: str, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=short,
        description=textwrap.dedent(text).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.set_defaults(run=run)
    return verb


def _tokenizer_flag(verb: argparse.ArgumentParser, folder: str = "DIR") -> None:
    verb.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help=f"the SentencePiece model (default: tokenizer.model in {folder})",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


# ---- info ----------------------------------------------------------------------------------------------


def _add_info(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "info",
        _info,
        "what a checkpoint is, in a few lines",
        """
        What a checkpoint is, in a few lines: the member of the family (guessed from its shapes), layout,
        parameters, dtype, context, infilling, chat format, and memory per rank on 1, 2, 4 and 8 ranks.
        Reads no weights, so it takes a moment for any size.

          codellama info CodeLlama-7b/
        """,
    )
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout")
    _tokenizer_flag(verb)


def _info(options: argparse.Namespace) -> int:
    from .checkpoint import open_checkpoint
    from .checkpoint.info import describe

    checkpoint = open_checkpoint(options.folder)
    for label, text in describe(checkpoint, _tokenizer(checkpoint, options.tokenizer)):
        print(f"{label:<14}  {text}")
    return 0


def _tokenizer(checkpoint: Checkpoint, path: Path | None) -> Tokenizer | None:
    from .checkpoint import tokenizer_of

    try:
        return tokenizer_of(checkpoint, path)
    except LlamaError:
        if path is not None:
            raise
        return None


# ---- verify --------------------------------------------------------------------------------------------


def _add_verify(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "verify",
        _verify,
        "whether a checkpoint is whole and sound",
        """
        Check a checkpoint and print a table with pass, fail or skip, and why. Exit code 0 if nothing failed, else 1.

          checksums        md5 of every file in checklist.chk
          tensors          every key, shape and dtype
          shard agreement  weights that every shard holds are the same in all
          values           all are finite, no tensor is all zero
          tokenizer        as many pieces as the embedding has rows
          infilling ids    a published prompt has its published ids
          rope_theta       what this member of the family was trained with
        """,
    )
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout")
    verb.add_argument("--quick", action="store_true", help="skip checksums and values, which read every byte")
    _tokenizer_flag(verb)


def _verify(options: argparse.Namespace) -> int:
    from .checkpoint.files import check_folder
    from .checkpoint.verify import verify
    from .progress import Progress

    folder = options.folder
    check_folder(folder)
    weights = [*folder.glob("*.pth"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    nbytes = sum(path.stat().st_size for path in weights if path.is_file())
    # Read for their values, and before that for checksums: all that a checklist names, else what holds its own.
    summed = (folder / "checklist.chk").is_file()
    again = [path for path in weights if summed or path.suffix in (".pth", ".bin")]
    progress = Progress(nbytes + sum(path.stat().st_size for path in again if path.is_file()), "verifying")
    failed = 0
    for finding in verify(folder, tokenizer_path=options.tokenizer, quick=options.quick, progress=progress):
        failed += finding.status == "fail"
        print(f"{finding.status:<4}  {finding.name:<15}  {finding.why}", flush=True)
    if failed:
        print(f"error: {failed} of the checks failed", file=sys.stderr)
    return 1 if failed else 0


# ---- convert -------------------------------------------------------------------------------------------


def _add_convert(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "convert",
        _convert,
        "another layout, number of shards or dtype",
        """
        Write a checkpoint in another layout, number of shards or dtype. Memory stays small whatever the model's
        size. DST appears when all of it is written and read back; a conversion that is stopped leaves nothing (one
        that is killed leaves .DST.unfinished, which no loader takes for a checkpoint and the next run removes).

          codellama convert CodeLlama-13b/ CodeLlama-13b-mp1/ --to meta --mp 1
          codellama convert CodeLlama-7b/ CodeLlama-7b-hf/ --to hf
          codellama convert CodeLlama-7b-hf/ CodeLlama-7b/ --to meta

        (The runtime itself needs no conversion: it loads any of these folders on any number of ranks.)
        """,
    )
    verb.add_argument("source", type=Path, metavar="SRC", help="a folder in Meta's or Hugging Face's layout")
    verb.add_argument("target", type=Path, metavar="DST", help="the folder to make")
    verb.add_argument("--to", required=True, choices=("meta", "hf"), help="the layout of DST")
    verb.add_argument(
        "--mp",
        type=_positive,
        metavar="N",
        help="number of shards of Meta's layout (default: as in SRC; from Hugging Face's what Meta ships, or 1)",
    )
    verb.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as stored)")
    verb.add_argument("--force", action="store_true", help="replace DST if it is a checkpoint folder")
    _tokenizer_flag(verb, "SRC")


def _convert(options: argparse.Namespace) -> int:
    from .checkpoint import open_checkpoint
    from .checkpoint.convert import convert
    from .checkpoint.source import dtype_name
    from .memory import parameter_count
    from .progress import Progress

    source = open_checkpoint(options.source)
    dtype = _dtype(options.dtype) or source.dtype
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
    folder = os.fsencode(done.folder).decode(errors="backslashreplace")  # a name need not be text
    print(f"Wrote {done.nbytes / 1e9:.2f} GB of weights in {dtype_name(done.dtype)} to {folder}:")
    for file in done.files:
        print(f"  {file}")
    return 0


def _dtype(name: str | None) -> torch.dtype | None:
    import torch

    return None if name is None else getattr(torch, name)


# ---- estimate ------------------------------------------------------------------------------------------


def _add_estimate(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "estimate",
        _estimate,
        "memory of a model, before anything is loaded",
        """
        Memory per rank of a model: weights, KV cache and work space; whether that fits on the devices present, and
        the longest sequences and largest batch that do.

          codellama estimate --model 34b --mp 4 --seq 16384 --batch 2
          codellama estimate --model CodeLlama-7b/ --dtype float32
          codellama estimate --table          the family's table, in Markdown
        """,
    )
    verb.add_argument(
        "--model", metavar="NAME|DIR", help=f"one of {', '.join(_FAMILY)}, or a checkpoint folder"
    )
    verb.add_argument(
        "--mp", type=_positive, default=1, metavar="N", help="ranks that hold the model (default 1)"
    )
    verb.add_argument(
        "--seq", type=_positive, default=4096, metavar="S", help="tokens of a sequence (default 4096)"
    )
    verb.add_argument(
        "--batch", type=_positive, default=1, metavar="B", help="sequences at a time (default 1)"
    )
    verb.add_argument(
        "--dtype", choices=_DTYPES, help="of weights and cache (default: as stored; bfloat16 for a name)"
    )
    verb.add_argument(
        "--quant",
        choices=("int8", "int4"),
        help="weight-only quantization: int8 with a scale per row, int4 with one per 128 weights (for planning: this"
        " version computes with unquantized weights only)",
    )
    verb.add_argument(
        "--table", action="store_true", help="the family's memory as a Markdown table, and nothing else"
    )


def _estimate(options: argparse.Namespace) -> int:
    from .checkpoint.source import dtype_name
    from .estimate import devices, estimate, table
    from .memory import GIB
    from .model import check_size

    if options.table:
        print(table())
        return 0
    if options.model is None:
        raise ConfigError(f"pass --model with one of {', '.join(_FAMILY)} or a checkpoint folder, or --table")
    args, stored = _shapes(options.model)
    dtype = _dtype(options.dtype) or stored
    check_size(args, options.mp)
    found = estimate(args, options.mp, options.seq, options.batch, dtype, options.quant)
    kind = options.quant or dtype_name(dtype)
    print(f"{options.model} on {options.mp} rank{'s' if options.mp > 1 else ''}, GiB per rank:")
    print(f"  weights     {found.weights / GIB:8.2f}  {kind}")
    print(f"  cache       {found.cache / GIB:8.2f}  {options.batch} x {options.seq:,} tokens")
    print(f"  work space  {found.work / GIB:8.2f}")
    print(f"  total       {found.total / GIB:8.2f}")
    present = devices()
    on_cpu = present[0][0] == "cpu"
    for name, free in present:
        # The ranks of one machine share its memory; GPUs have each their own.
        share = None if free is None else free // options.mp if on_cpu else free
        print(_fit(name, share, args, dtype, options))
    if not on_cpu and len(present) < options.mp:
        print(f"{options.mp} ranks need as many GPUs; this machine has {len(present)}")
    return 0


def _fit(
    name: str, free: int | None, args: ModelArgs, dtype: torch.dtype, options: argparse.Namespace
) -> str:
    from .estimate import estimate, largest
    from .memory import GIB, SPARE

    if free is None:
        return f"{name}: the system does not say what is free"
    size, seq, batch, quant = options.mp, options.seq, options.batch, options.quant

    def fits(seq: int, batch: int) -> bool:
        return estimate(args, size, seq, batch, dtype, quant).total <= free * SPARE

    has = f"{name}: {free / GIB:.2f} GiB free per rank"
    if not fits(1, 1):
        return f"{has}: does not fit, not even with an empty cache; use more ranks or a smaller dtype"
    verdict = "fits" if fits(seq, batch) else "does not fit"
    longest, most = largest(lambda n: fits(n, batch)), largest(lambda n: fits(seq, n))
    return f"{has}: {verdict}; what fits: {batch:,} x {longest:,} tokens, or {most:,} x {seq:,}"


def _shapes(model: str) -> tuple[ModelArgs, torch.dtype]:
    """Of a member of the family, or of a folder."""
    import torch

    from .checkpoint import open_checkpoint
    from .checkpoint.members import MEMBERS, args_of

    for member in MEMBERS:
        if model.lower() == member.name.lower():
            return args_of(member), torch.bfloat16
    if not Path(model).exists():
        raise CheckpointNotFoundError(
            f"there is no model and no folder {model!r}; pass one of {', '.join(_FAMILY)}, or a checkpoint folder"
        )
    checkpoint = open_checkpoint(model)
    return checkpoint.args, checkpoint.dtype
