"""`codellama complete`: continues a text."""

from __future__ import annotations

import argparse

from .fill_arguments import add_fill, run_fill

SUMMARY = "continue a text"
DESCRIPTION = """
    Continue a text, or what of it is before the cursor, and print what the model writes, as it comes. The text is
    continued as it is: nothing is stripped or added. With --in-place the answer is inserted into FILE, in one step;
    a file that was changed meanwhile is left as it is.

      echo -n 'def fib(' | codellama complete CodeLlama-7b/
      codellama complete CodeLlama-7b/ sort.py --line 12 --in-place
      codellama complete http://127.0.0.1:8000 sort.py --max-gen-len 64
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_fill(parser, without_line="the end of the text")


def run(options: argparse.Namespace) -> int:
    return run_fill(options, "complete")
