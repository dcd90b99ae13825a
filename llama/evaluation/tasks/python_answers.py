"""Questions for a chat model that is to write Python, and the code in its answers.

Such an answer may hold one block of code, several or none; the whole function, with its imports or without them, or
its body alone; and examples of its use. All by lines and patterns: a text that is no Python at all is taken as well.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Sequence

from .fences import fenced_blocks

__all__ = ["defining_any", "fitted_to_prompt", "function_question", "task_question"]

_LANGUAGES = frozenset({"python", "python3", "py"})
_ASK = "Answer with one block of Python code between ``` lines"

# A line at the left edge that belongs to code which defines things, and does nothing else.
_DEFINES = re.compile(
    r"(?:async +)?def +\w+|class +\w+|@\w|import +\w|from +[\w.]+ +import\b|#|[)\]}]|\w+ *(?::[^=]+)?=[^=]"
)
# One that only uses them, as the stops of HumanEval have it for a base model.
_USES = re.compile(r"print\b|assert\b|if[ ]+__name__\b|>>>|\w[\w, ]*=[^#\"'\n]*\binput\(")
_FUTURE = re.compile(r"^from __future__ import .*\n?", re.MULTILINE)


def function_question(prompt: str) -> str:
    """Asks for the function whose signature and docstring `prompt` ends with."""
    return (
        "Complete the last function of this Python code:\n\n"
        f"```python\n{prompt.rstrip()}\n```\n\n"
        f"{_ASK}: the whole function, and the imports that it needs."
    )


def task_question(text: str, tests: Sequence[str]) -> str:
    """Asks for code that a sentence describes and that some tests call."""
    lines = "\n".join(tests)
    return (
        f"Write Python code for this task: {text}\n\n"
        f"It has to pass these tests:\n\n```python\n{lines}\n```\n\n"
        f"{_ASK}, without the tests."
    )


def fitted_to_prompt(message: str, prompt: str, name: str) -> str:
    """The continuation of `prompt`, which ends within the function `name`, that does what the message says.

    A whole function follows as a second definition, which replaces the first: what else the prompt defines and
    imports stays. A body is indented as it has to be.
    """
    blocks = fenced_blocks(message, _LANGUAGES)
    code = _definition(blocks or [_unfenced(message, {name})], {name}, prompt)
    if code is not None:
        return "\n" + code
    return _as_body(blocks[0] if blocks else message)


def defining_any(message: str, tests: str) -> str:
    """The code of a message that defines one of the names that `tests` call; else all of its code."""
    names = set(re.findall(r"\b([A-Za-z_]\w*)[ ]*\(", tests))
    blocks = fenced_blocks(message, _LANGUAGES)
    code = _definition(blocks or [_unfenced(message, names)], names, tests)
    if code is not None:
        return code
    return _FUTURE.sub("", "\n".join(blocks) if blocks else message)


def _definition(blocks: Sequence[str], names: Collection[str], question: str) -> str | None:
    """The block that defines one of `names`, with those beside it that only define other things; None without it."""
    defines = _definitions_of(names)
    asked = {line.strip() for line in question.splitlines()} | {"pass", "..."}
    defining = [block for block in blocks if defines.search(block)]
    if not defining:
        return None
    # Some models first repeat what they were asked, perhaps with a comment where the body goes.
    own = [block for block in defining if not _statements(block) <= asked]
    chosen = (own or defining)[0]
    taken = set(defines.findall(chosen))
    kept = [
        block if block is not chosen else _without_use(block, defines)
        for block in blocks
        if block is chosen or (_only_defines(block) and taken.isdisjoint(defines.findall(block)))
    ]
    return _FUTURE.sub("", "\n".join(kept))


def _statements(block: str) -> set[str]:
    return {line.strip() for line in block.splitlines() if not line.lstrip().startswith("#")}


def _definitions_of(names: Collection[str]) -> re.Pattern[str]:
    """Matches the start of a line that defines one of `names` at the left edge; its group is the name."""
    return re.compile(
        rf"^(?:(?:async +)?def|class) +({'|'.join(map(re.escape, sorted(names)))})\b", re.MULTILINE
    )


def _only_defines(block: str) -> bool:
    return all(_is_code(line) for line in block.splitlines())


def _without_use(block: str, defines: re.Pattern[str]) -> str:
    """The block up to the first line after the function that only uses it: an example, or tests of its own."""
    lines = block.splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if defines.match(line))
    for number in range(first + 1, len(lines)):
        if _USES.match(lines[number]):
            return "".join(lines[:number])
    return block


def _unfenced(message: str, names: Collection[str]) -> str:
    """Of a message without fences the lines from the first that defines something to the last before words."""
    lines = message.replace("\r\n", "\n").splitlines(keepends=True)
    defines = _definitions_of(names)
    middle = next((number for number, line in enumerate(lines) if defines.match(line)), None)
    if middle is None:
        return ""
    first, last = middle, middle + 1
    while first > 0 and _is_code(lines[first - 1]):
        first -= 1
    # What is indented in front of the first line at the left edge belongs to no code: indented words, say.
    while lines[first][:1].isspace():
        first += 1
    while last < len(lines) and _is_code(lines[last]):
        last += 1
    return "".join(lines[first:last])


def _is_code(line: str) -> bool:
    return not line[:1].strip() or _DEFINES.match(line) is not None


def _as_body(code: str) -> str:
    """The lines of a function's body, indented by four blanks."""
    lines = textwrap.dedent(code.replace("\r\n", "\n").strip("\n")).split("\n")
    depths = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    # A message is stripped, so its first line may have lost the blanks that all others have.
    least = min(depths, default=0)
    opens = re.search(r":[ \t]*(?:#.*)?$", lines[0]) is not None and depths[:1] == [least]
    if len(lines[0]) - len(lines[0].lstrip()) < least and not opens:
        lines[0] = " " * least + lines[0].lstrip()
    return textwrap.indent(textwrap.dedent("\n".join(lines)), "    ") + "\n"
