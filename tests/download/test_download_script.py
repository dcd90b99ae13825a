"""The text of download.sh: its help is complete, and it runs on bash 3.2 and macOS."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from download_script import ROOT, SCRIPT, needs_tools

pytestmark = needs_tools


def test_help_names_every_option_and_variable(once) -> None:
    text = once.run("--help").stdout
    used = set(
        re.findall(r"\bCODELLAMA_[A-Z0-9]+\b|(?<=[ |(])--[a-z][a-z-]+(?==\*\)| \||\))", SCRIPT.read_text())
    )
    ours = {one for one in used if one.startswith("CODELLAMA_")} | {
        "--url",
        "--models",
        "--dir",
        "--jobs",
        "--list",
        "--check-only",
        "--dry-run",
        "--help",
    }
    assert [one for one in sorted(ours) if one not in text] == []


def test_the_script_has_unix_line_ends_here_and_in_any_checkout() -> None:
    assert b"\r" not in SCRIPT.read_bytes()
    assert "*.sh text eol=lf" in (ROOT / ".gitattributes").read_text().splitlines()


BASH_4 = {
    "associative or global declarations": r"\b(declare|local|typeset)\s+-[a-zA-Z]*[Agnlu]",
    "mapfile": r"\b(mapfile|readarray|coproc)\b",
    "case conversion": r"\$\{\w+(\[[^]]*\])?(,,?|\^\^?|@)[^}]*\}",
    "wait -n": r"\bwait\s+-n",
    "appending both outputs": r"&>>|\|&",
    "falling through a case": r";;?&",
    "negative index": r"\$\{\w+\[-\d",
    "negative length": r"\$\{\w+:[^}:$]*:\s*-\d",
    "variables of bash 4": r"\$\{?(BASHPID|EPOCHSECONDS|EPOCHREALTIME|SRANDOM)\b",
    "test -v": r"\[\[?\s+(!\s+)?-v\s",
    "fractional read -t": r"\bread\b[^\n;|]*-t\s*\d*\.\d",
    "chosen descriptors": r"exec \{\w+\}",
    "unguarded empty arrays": r'(?<!\+)"\$\{(rest|resume)\[@\]\}"',
    "GNU-only options": r"\b(stat -c|stat --|sed -i|sed -r|df -B|df -h|date -d|date --|readlink -f|head -c -|wc --)",
}


@pytest.mark.parametrize("construct", BASH_4)
def test_nothing_that_bash_3_or_macos_lacks_is_used(construct) -> None:
    code = re.sub(r"(^|\s)#.*$", "", SCRIPT.read_text(), flags=re.MULTILINE)
    assert re.findall(BASH_4[construct], code) == []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on this machine")
def test_shellcheck_has_nothing_to_say() -> None:
    result = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
