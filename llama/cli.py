"""The verbs of `python -m llama`, also installed as `codellama`.

Each verb imports what it needs when it runs, so that `--help` is there at once. Results go to stdout,
messages and progress to stderr, all of it as printable lines. Exit codes, as shells have them: 0 done, 1 a named
error or a failed check, 2 wrong usage, 128 and the number of the signal that ended it: 130 Ctrl-C, 143 SIGTERM,
129 a closed terminal, 141 a reader of stdout that went away.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import CheckpointNotFoundError, ConfigError, LlamaError
from .printable import printable, reason, say, tell

if TYPE_CHECKING:
    import torch

    from .checkpoint import Checkpoint
    from .sizing.args import ModelArgs
    from .tokenizer import Tokenizer

__all__ = ["main"]

_DTYPES = ("bfloat16", "float16", "float32")
_DIGITS = 12  # of a number on the command line
_FAMILY = ("7b", "13b", "34b", "70b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb -> the exit code.

    Args:
        arguments: by default those of the process.

    Raises:
        SystemExit: help (0) or wrong usage (2), as of argparse.
    """
    try:
        with _endings():
            options = _parser().parse_args(arguments)
            code: int = options.run(options)
            return code
    except LlamaError as error:
        return _refuse(reason(error))
    except (KeyboardInterrupt, _TerminatedError) as end:
        word, number = ("interrupted", signal.SIGINT) if isinstance(end, KeyboardInterrupt) else end.args
        # What a conversion that was under way says of the state of its target.
        tell(": ".join([word, *getattr(end, "__notes__", ())]))
        return 128 + int(number)
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        _drop_stdout()
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:
        _drop_stdout()
        return _refuse(reason(error))
    except MemoryError as error:
        return _refuse(f"not enough memory ({reason(error)})")


def _refuse(message: str) -> int:
    tell(f"error: {message}")
    return 1


def _out(line: str) -> None:
    """A line of a result."""
    say(line, sys.stdout)


def _drop_stdout() -> None:
    """What stdout could not take is not tried once more at exit, where Python would complain of it."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, ValueError):  # there is none, or it is closed
        pass


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP came, as an exception, so that what is half done is cleaned up. Holds a word and the number."""


@contextlib.contextmanager
def _endings() -> Iterator[None]:
    """Within it a closed terminal or SIGTERM ends a conversion as tidily as Ctrl-C."""
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers: list[signal.Signals] = [getattr(signal, name) for name in names]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # a host program's thread, which gets no signals
    # Under nohup a closed terminal is to be ignored, and stays so.
    numbers = [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(each, _terminated) for each in numbers]
    try:
        yield
    finally:
        for each, handler in zip(numbers, before, strict=True):
            signal.signal(each, handler)


def _terminated(number: int, frame: object) -> NoReturn:
    raise _TerminatedError("terminated", number)


class _Parser(argparse.ArgumentParser):
    """argparse's own, whose messages hold what the command line held, made printable."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        for line in message.splitlines():
            if file is sys.stdout:
                _out(line)
            else:
                tell(line)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
        type=_path,
        metavar="FILE",
        help=f"the SentencePiece model (default: tokenizer.model in {folder})",
    )


def _positive(text: str) -> int:
    # Not isdigit alone: "²" is a digit, and int() takes no more than 4,300 of them.
    if not (text.isascii() and text.isdigit()) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    if len(text.lstrip("0")) > _DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} has more than {_DIGITS} digits, which nothing here needs")
    return int(text)


def _path(text: str) -> Path:
    if not text:  # as a Path it would be the current folder
        raise argparse.ArgumentTypeError("the name is empty; is a variable of the shell not set?")
    try:
        os.lstat(text)
    except OSError:
        pass  # not there: the verb says so
    except ValueError:  # NUL, or half a surrogate pair
        raise argparse.ArgumentTypeError(f"{text!r} is not a name that a file can have") from None
    return Path(text)


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
    verb.add_argument("folder", type=_path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout")
    _tokenizer_flag(verb)


def _info(options: argparse.Namespace) -> int:
    from .checkpoint import open_checkpoint
    from .checkpoint.info import describe

    checkpoint = open_checkpoint(options.folder)
    for label, text in describe(checkpoint, _tokenizer(checkpoint, options.tokenizer)):
        _out(f"{label:<14}  {text}")
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
    verb.add_argument("folder", type=_path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout")
    verb.add_argument("--quick", action="store_true", help="skip checksums and values, which read every byte")
    _tokenizer_flag(verb)


def _verify(options: argparse.Namespace) -> int:
    from .checkpoint.files import check_folder
    from .checkpoint.progress import Progress
    from .checkpoint.verify import verify

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
        _out(f"{finding.status:<4}  {finding.name:<15}  {finding.why}")
    if failed:
        tell(f"error: {failed} of the checks failed")
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
        size. DST appears when all of it is written, read back and opened; a conversion that is stopped leaves nothing
        (one that is killed leaves .DST.unfinished, which no loader takes for a checkpoint and the next run removes).

          codellama convert CodeLlama-13b/ CodeLlama-13b-mp1/ --to meta --mp 1
          codellama convert CodeLlama-7b/ CodeLlama-7b-hf/ --to hf
          codellama convert CodeLlama-7b-hf/ CodeLlama-7b/ --to meta

        (The runtime itself needs no conversion: it loads any of these folders on any number of ranks.)
        """,
    )
    verb.add_argument("source", type=_path, metavar="SRC", help="a folder in Meta's or Hugging Face's layout")
    verb.add_argument("target", type=_path, metavar="DST", help="the folder to make")
    verb.add_argument("--to", required=True, choices=("meta", "hf"), help="the layout of DST")
    verb.add_argument(
        "--mp",
        type=_positive,
        metavar="N",
        help="number of shards of Meta's layout (default: as in SRC; from Hugging Face's what Meta ships, or 1)",
    )
    verb.add_argument("--dtype", choices=_DTYPES, help="of the weights (default: as stored)")
    verb.add_argument(
        "--force", action="store_true", help="replace DST if it holds a checkpoint and nothing else"
    )
    _tokenizer_flag(verb, "SRC")


def _convert(options: argparse.Namespace) -> int:
    from .checkpoint import open_checkpoint
    from .checkpoint.base import dtype_name
    from .checkpoint.convert import convert
    from .checkpoint.progress import Progress
    from .sizing.budget import parameter_count

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
    _out(f"Wrote {done.nbytes / 1e9:.2f} GB of weights in {dtype_name(done.dtype)} to {done.folder}:")
    for file in done.files:
        _out(f"  {file}")
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
    from .checkpoint.base import dtype_name
    from .sizing.args import check_size
    from .sizing.budget import GIB
    from .sizing.estimate import devices, estimate, table

    if options.table:
        for line in table().splitlines():
            _out(line)
        return 0
    if options.model is None:
        raise ConfigError(f"pass --model with one of {', '.join(_FAMILY)} or a checkpoint folder, or --table")
    args, stored = _shapes(options.model)
    dtype = _dtype(options.dtype) or stored
    check_size(args, options.mp)
    found = estimate(args, options.mp, options.seq, options.batch, dtype, options.quant)
    kind = options.quant or dtype_name(dtype)
    _out(f"{options.model} on {options.mp} rank{'s' if options.mp > 1 else ''}, GiB per rank:")
    _out(f"  weights     {found.weights / GIB:8.2f}  {kind}")
    _out(f"  cache       {found.cache / GIB:8.2f}  {options.batch} x {options.seq:,} tokens")
    _out(f"  work space  {found.work / GIB:8.2f}")
    _out(f"  total       {found.total / GIB:8.2f}")
    present = devices()
    on_cpu = present[0][0] == "cpu"
    for name, free in present:
        # The ranks of one machine share its memory; GPUs have each their own.
        share = None if free is None else free // options.mp if on_cpu else free
        _out(_fit(name, share, args, dtype, options))
    if not on_cpu and len(present) < options.mp:
        _out(f"{options.mp} ranks need as many GPUs; this machine has {len(present)}")
    return 0


def _fit(
    name: str, free: int | None, args: ModelArgs, dtype: torch.dtype, options: argparse.Namespace
) -> str:
    from .sizing.budget import GIB, SPARE
    from .sizing.estimate import estimate, largest

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
    from .sizing.family import MEMBERS, args_of

    for member in MEMBERS:
        if model.lower() == member.name.lower():
            return args_of(member), torch.bfloat16
    if not Path(model).exists():
        raise CheckpointNotFoundError(
            f"there is no model and no folder {model!r}; pass one of {', '.join(_FAMILY)}, or a checkpoint folder"
        )
    checkpoint = open_checkpoint(model)
    return checkpoint.args, checkpoint.dtype
