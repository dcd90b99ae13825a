"""Mutants of what the commands print, and of `convert`."""

from __future__ import annotations

from mutant import Mutant

_TERMINAL = "tests/test_terminal.py"

MUTANTS = [
    Mutant(
        name="a line of a stranger's keeps its control characters",
        file="llama/printable.py",
        old="    line = printable(text).encode(",
        new="    line = text.encode(",
        tests=(f"{_TERMINAL}::test_evil_names_of_files",),
    ),
    Mutant(
        name="a terminal that knows ASCII only ends the program",
        file="llama/printable.py",
        old='.encode(encoding, "backslashreplace")',
        new=".encode(encoding)",
        tests=(f"{_TERMINAL}::test_a_line_goes_to_a_terminal_of_any_encoding",),
    ),
    Mutant(
        name="what is logged may have two lines",
        file="llama/distributed.py",
        old="        tell(message)",
        new="        print(message, file=sys.stderr, flush=True)",
        tests=(f"{_TERMINAL}::test_what_is_logged_is_one_line",),
    ),
    Mutant(
        name="an error without words says nothing",
        file="llama/printable.py",
        old="str(error).strip() or type(error).__name__",
        new="str(error).strip()",
        tests=(f"{_TERMINAL}::test_a_reason_is_never_empty",),
    ),
    Mutant(
        name="Python complains at exit of a stdout that nobody reads",
        file="llama/cli.py",
        old="            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())",
        new="            pass",
        tests=(f"{_TERMINAL}::test_a_reader_that_is_gone_ends_it_quietly",),
    ),
    Mutant(
        name="a number of 400 digits is taken",
        file="llama/cli.py",
        old='if len(text.lstrip("0")) > _DIGITS:',
        new='if len(text.lstrip("0")) > 10 * _DIGITS * _DIGITS:',
        tests=(f"{_TERMINAL}::test_a_number_out_of_range_is_wrong_usage",),
    ),
    Mutant(
        name="an empty name is the current folder",
        file="llama/cli.py",
        old="    if not text:  #",
        new="    if text is None:  #",
        tests=(f"{_TERMINAL}::test_evil_words_of_the_command_line",),
    ),
    Mutant(
        name="nohup is overruled",
        file="llama/cli.py",
        old="if signal.getsignal(each) is not signal.SIG_IGN]",
        new="if signal.getsignal(each) is not None]",
        tests=(f"{_TERMINAL}::test_a_closed_terminal_is_ignored_under_nohup",),
    ),
    Mutant(
        name="a disk that fails under Llama.build is no named error",
        file="llama/checkpoint/load.py",
        old="    except OSError as error:  # a disk",
        new="    except EOFError as error:  # a disk",
        tests=(f"{_TERMINAL}::test_a_folder_that_fails_under_the_reader_is_a_named_error",),
    ),
]
