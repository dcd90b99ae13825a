"""`main`: parses the command line, runs one verb, and turns every outcome into an exit code and one line.

Exit codes are a shell's: 0 done; 1 a named error or a failed check; 2 wrong usage; 128 + n ended by signal n:
130 Ctrl-C, 143 SIGTERM, 129 a closed terminal, 141 a reader of stdout that went away.
"""

from __future__ import annotations

import argparse
import signal
import textwrap
from collections.abc import Sequence
from typing import Protocol

from .. import __version__
from ..errors import LlamaError
from ..printable import reason, tell
from . import batch, chat, client, complete, convert, estimate, infill, info, playground, score, serve, verify
from . import eval as evaluation
from .arguments import Parser
from .terminal import TerminatedError, drop_stdout, signals_raise

__all__ = ["VERBS", "Verb", "main", "make_parser"]


class Verb(Protocol):
    """What the module of a verb holds."""

    SUMMARY: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


VERBS: dict[str, Verb] = {
    "serve": serve,
    "playground": playground,
    "chat": chat,
    "client": client,
    "complete": complete,
    "infill": infill,
    "batch": batch,
    "eval": evaluation,
    "score": score,
    "info": info,
    "verify": verify,
    "convert": convert,
    "estimate": estimate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb -> the exit code.

    Args:
        arguments: by default those of the process.

    Raises:
        SystemExit: help (0) or wrong usage (2), as argparse does.
    """
    try:
        with signals_raise():
            options = make_parser().parse_args(arguments)
            code: int = options.run(options)
            return code
    except LlamaError as error:
        return _fail(reason(error))
    except (KeyboardInterrupt, TerminatedError) as end:
        word, number = ("interrupted", signal.SIGINT) if isinstance(end, KeyboardInterrupt) else end.args
        # An interrupted conversion notes here in what state it left its target.
        tell(": ".join([word, *getattr(end, "__notes__", ())]))
        return 128 + int(number)
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        drop_stdout()
        return 128 + getattr(signal, "SIGPIPE", 13)
    except OSError as error:
        drop_stdout()
        return _fail(reason(error))
    except MemoryError as error:
        return _fail(f"not enough memory ({reason(error)})")


def make_parser() -> argparse.ArgumentParser:
    """The command line of all verbs; parsed options hold the verb's function as `run`."""
    parser = Parser(
        prog="codellama",
        description="Serve and run models of the Code Llama family; describe, verify and convert their checkpoints.",
        formatter_class=_Columns,
    )
    parser.add_argument("--version", action="version", version=f"codellama {__version__}")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        each = verbs.add_parser(
            name,
            help=verb.SUMMARY,
            description=textwrap.dedent(verb.DESCRIPTION).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(each)
        each.set_defaults(run=verb.run)
    return parser


class _Columns(argparse.HelpFormatter):
    """Makes the first column wide enough for every verb: argparse forgets that they are indented once more."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        if isinstance(action.choices, dict):
            longest = max(map(len, action.choices))
            self._action_max_length = max(self._action_max_length, longest + self._indent_increment * 2)


def _fail(message: str) -> int:
    tell(f"error: {message}")
    return 1
