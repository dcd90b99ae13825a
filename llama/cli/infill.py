"""`codellama infill`: fills in what is missing in a text."""

from __future__ import annotations

import argparse

from .fill_arguments import add_fill, run_fill

SUMMARY = "fill in what is missing in a text"
DESCRIPTION = """
    Fill in one place of a text, with a view of what is before and behind it, and print what the model writes, as it
    comes. The place is one <FILL> in the text, or the cursor of --line and --column. With --in-place the answer is
    written into FILE, in one step; a file that was changed meanwhile is left as it is.

      codellama infill CodeLlama-7b/ sort.py --line 12 --column 5
      codellama infill CodeLlama-7b/ sort.py --line 12 --column 5 --in-place
      printf 'def add(a, b):\\n    <FILL>\\n' | codellama infill http://127.0.0.1:8000 --full
    """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_fill(parser, without_line="the <FILL> in the text")


def run(options: argparse.Namespace) -> int:
    return run_fill(options, "infill")
