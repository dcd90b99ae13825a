"""Mutants of what the commands print, and how they end."""

from __future__ import annotations

from mutant import Mutant

_PRINTABLE = "tests/test_printable.py"
_NAMES = "tests/cli/test_hostile_names.py"
_ENDS = "tests/cli/test_ends.py"

MUTANTS = [
    Mutant(
        name="a line of a stranger's keeps its control characters",
        file="llama/printable.py",
        old="    line = printable(text).encode(",
        new="    line = text.encode(",
        tests=(f"{_NAMES}::test_hostile_names_of_files",),
    ),
    Mutant(
        name="a terminal that knows ASCII only ends the program",
        file="llama/printable.py",
        old='.encode(encoding, "backslashreplace")',
        new=".encode(encoding)",
        tests=(f"{_PRINTABLE}::test_a_line_goes_to_a_terminal_of_any_encoding",),
    ),
    Mutant(
        name="what is logged may have two lines",
        file="llama/distributed/environment.py",
        old="        tell(message)",
        new="        print(message, file=sys.stderr, flush=True)",
        tests=(f"{_PRINTABLE}::test_what_is_logged_is_one_line",),
    ),
    Mutant(
        name="an error without words says nothing",
        file="llama/printable.py",
        old="str(error).strip() or type(error).__name__",
        new="str(error).strip()",
        tests=(f"{_PRINTABLE}::test_a_reason_is_never_empty",),
    ),
    Mutant(
        name="Python complains at exit of a stdout that nobody reads",
        file="llama/cli/terminal.py",
        old="            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())",
        new="            pass",
        tests=(f"{_ENDS}::test_a_reader_that_is_gone_ends_it_quietly",),
    ),
    Mutant(
        name="a number of 400 digits is taken",
        file="llama/cli/arguments.py",
        old='if len(text.lstrip("0")) > _MAX_DIGITS:',
        new='if len(text.lstrip("0")) > 10 * _MAX_DIGITS * _MAX_DIGITS:',
        tests=(f"{_NAMES}::test_a_number_out_of_range_is_wrong_usage",),
    ),
    Mutant(
        name="an empty name is the current folder",
        file="llama/cli/arguments.py",
        old="    if not text:  #",
        new="    if text is None:  #",
        tests=(f"{_NAMES}::test_hostile_words_of_the_command_line",),
    ),
    Mutant(
        name="nohup is overruled",
        file="llama/cli/terminal.py",
        old="if signal.getsignal(each) is not signal.SIG_IGN]",
        new="if signal.getsignal(each) is not None]",
        tests=(f"{_ENDS}::test_a_closed_terminal_is_ignored_under_nohup",),
    ),
]
