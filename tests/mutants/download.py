"""download.sh: what a hostile server, or the caller's own environment, could make of it."""

from __future__ import annotations

from mutant import Mutant

_URL = "tests/download/test_signed_url.py::"
_ANSWERS = "tests/download/test_wrong_answers.py::"
_CONNECTIONS = "tests/download/test_broken_connections.py::"
_ENVIRONMENT = (_URL + "test_the_query_is_in_the_environment_of_no_program_whatever_the_caller_exported",)
_PIPE = (_URL + "test_the_script_may_be_read_from_a_pipe",)
_BOUND = (_ANSWERS + "test_no_more_bytes_are_taken_than_announced_or_than_such_a_file_can_have",)
_LENGTH = (_ANSWERS + "test_an_odd_length_is_read_as_a_decimal_number_or_not_at_all",)
_LONG = (_ANSWERS + "test_a_length_that_such_a_file_cannot_have_is_refused",)
_TRICKLE = (_CONNECTIONS + "test_a_trickle_counts_as_broken_and_a_try_that_brings_one_as_none",)

MUTANTS = [
    Mutant(
        name="download.sh: names that the caller exported stay exported",
        file="download.sh",
        old="unset $(env |",
        new=": $(env |",
        tests=_ENVIRONMENT,
    ),
    Mutant(
        name="download.sh: all is exported under allexport",
        file="download.sh",
        old="set +aefkvxC",
        new="set +efkvxC",
        tests=_ENVIRONMENT,
    ),
    Mutant(
        name="download.sh: no bound on the bytes of a transfer",
        file="download.sh",
        old="    ulimit -f $(($1 / 1024 + 1)) 2>/dev/null\n",
        new="",
        tests=_BOUND,
    ),
    Mutant(
        name="download.sh: a small file may be as long as weights",
        file="download.sh",
        old="        *) echo 1048576 ;;",
        new="        *) echo 1048576000 ;;",
        tests=_BOUND,
    ),
    Mutant(
        name="download.sh: a trickle never counts as broken",
        file="download.sh",
        old="-lt $((SLOWEST * patience))",
        new="-lt 1",
        tests=_TRICKLE,
    ),
    Mutant(
        name="download.sh: a try that brings one byte is progress",
        file="download.sh",
        old="-ge $((SLOWEST * (SECONDS - since + 1)))",
        new="-gt 0",
        tests=_TRICKLE,
    ),
    Mutant(
        name="download.sh: a length with a zero before it is octal",
        file="download.sh",
        old='sub(/^0+/, "", size)',
        new='sub(/^ +/, "", size)',
        tests=_LENGTH,
    ),
    Mutant(
        name="download.sh: a length of any number of digits goes to the shell",
        file="download.sh",
        old="if (length(size) > 15)",
        new="if (length(size) > 150)",
        tests=_LONG,
    ),
    Mutant(
        name="download.sh: a script from a pipe keeps --url among its arguments",
        file="download.sh",
        old='parse ${rest[@]+"${rest[@]}"}',
        new='parse ${1+"$@"}',
        tests=_PIPE,
    ),
    Mutant(
        name="download.sh: a script from a pipe starts a file called main",
        file="download.sh",
        old='[ ! -f "$SELF" ]',
        new='[ ! -f "${BASH_SOURCE[0]-}" ]',
        tests=_PIPE,
    ),
]
