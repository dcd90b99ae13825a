"""Questions for a chat model in C++, Java, PHP, TypeScript, C#, bash and JavaScript, and the code in its answers.

The prompts of MultiPL-E end within a function. Where the answer is its body, that follows. Where it is a whole
function, or a program with one, the prompt's function calls the answer's: `Style.call` says how.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from .fences import fenced_blocks

__all__ = ["STYLES", "Style", "braced_question", "fitted_to_braces"]


@dataclass(frozen=True)
class Style:
    """How a language writes functions, and how MultiPL-E does in it.

    title: its name, as people write it. fences: its names after a fence, the usual one first.
    defines: a regular expression that matches where the function {name} is defined.
    parameter: one whose group is the name of a parameter, in the text between two commas.
    closed: an answer ends the prompt's function itself; else the tests do.
    call: from the function's name, its arguments, and code that defines it, the answer that calls it.
    """

    title: str
    fences: tuple[str, ...]
    defines: str
    parameter: str
    closed: bool
    call: Callable[[str, str, str], str]


# Lines that begin code in one of the languages, where a message has no fence.
_BEGINS = re.compile(
    r"^[ \t]*(?:#include|#!|using\b|import\b|public\b|static\b|class\b|function\b|const\b|<\?php)", re.M
)
# And that end it.
_ENDS = re.compile(r"[};][ \t]*$", re.MULTILINE)


def braced_question(prompt: str, style: Style) -> str:
    """Asks for the function whose comment and first line `prompt` ends with."""
    return (
        f"Complete the last function of this {style.title} code:\n\n"
        f"```{style.fences[0]}\n{prompt.rstrip()}\n```\n\n"
        f"Answer with one block of {style.title} code between ``` lines: the whole function, and what else it needs."
    )


def fitted_to_braces(message: str, prompt: str, style: Style) -> str:
    """The continuation of `prompt`, which ends within a function, that does what the message says."""
    name, arguments = _signature(prompt, style)
    defines = re.compile(style.defines.format(name=re.escape(name)), re.MULTILINE)
    blocks = fenced_blocks(message, style.fences) or [_unfenced(message, defines)]
    asked = {line.strip() for line in prompt.splitlines()} | {"}"}
    defining = [block for block in blocks if defines.search(block)]
    own = [block for block in defining if not _statements(block) <= asked]
    if defining:
        return style.call(name, arguments, (own or defining)[0])
    return _as_body(blocks[0], style.closed)


def _statements(block: str) -> set[str]:
    return {line.strip() for line in block.splitlines() if not line.lstrip().startswith(("//", "#"))}


def _signature(prompt: str, style: Style) -> tuple[str, str]:
    """Name and arguments of the function that a prompt ends in, the latter as a call has them."""
    line = prompt.rstrip().rsplit("\n", 1)[-1]
    start = re.search(r"(\w+)[ ]*\(", line)
    if start is None:
        return "", ""
    depth, piece, pieces = 0, "", []
    for character in line[start.end() :].replace("=>", ""):  # the arrow is no bracket
        if depth == 0 and character in ",)":
            pieces.append(piece)
            piece = ""
            if character == ")":
                break
            continue
        depth += (character in "(<[{") - (character in ")>]}")
        piece += character
    found = [re.search(style.parameter, piece.strip()) for piece in pieces]
    return start[1], ", ".join(match[1] for match in found if match)


def _unfenced(message: str, defines: re.Pattern[str]) -> str:
    """Of a message without fences the lines from the first that begins code to the last that ends it."""
    message = message.replace("\r\n", "\n")
    found = defines.search(message)
    if found is None:
        return message
    begins = _BEGINS.search(message)
    start = min(found.start(), begins.start() if begins else found.start())
    ends = [match.end() for match in _ENDS.finditer(message, found.end())]
    return textwrap.dedent(message[start : ends[-1] if ends else len(message)]) + "\n"


def _as_body(code: str, closed: bool) -> str:
    """The lines of a body, with the brace that ends the function or without it, as the tests need it."""
    code = code.rstrip()
    too_many = code.count("}") - code.count("{")
    if closed and too_many == 0:
        return code + "\n}\n"
    if not closed and too_many == 1 and code.endswith("}"):
        return code[:-1].rstrip() + "\n"
    return code + "\n"


def _without(code: str, *patterns: str) -> str:
    """The code without the lines that match one of the patterns."""
    return re.sub(rf"^[ \t]*(?:{'|'.join(patterns)}).*\n?", "", code, flags=re.MULTILINE)


def _renamed(code: str, *names: str) -> str:
    """The code with another name for each function: the prompt and the tests define these already."""
    return re.sub(rf"\b({'|'.join(map(re.escape, names))})(?=[ ]*\()", r"\1_of_answer", code)


def _cpp(name: str, arguments: str, code: str) -> str:
    # C++ has no functions within functions, but a struct within one, whose members need no order. None is static:
    # such a struct has no static variables, and static functions would not see the others.
    opened = "".join(re.findall(r"^using namespace .*\n", code, re.MULTILINE))
    code, around = _members(_without(code, r"#include\b", r"using namespace\b", r"#pragma\b"), name)
    code = re.sub(r"^(?:static |constexpr (?=\w))+", "", code, flags=re.MULTILINE)
    # A parameter of the prompt's function may be named string, which within the struct would hide the type.
    alias = f"using {around} = Answer;\n" if around else ""
    answer = f"{opened}struct Answer {{\nusing string = std::string;\n{alias}{code}}};\n"
    return f"{answer}    return Answer().{name}({arguments});\n"


def _java(name: str, arguments: str, code: str) -> str:
    code = _without(code, r"import\b", r"package\b")
    code, around = _members(code, name)
    members = re.sub(r"^(?:public )?(?=class )", "static ", code, flags=re.MULTILINE)
    if around not in ("", "Problem"):  # its main may make one
        members += f"    static class {around} extends Problem {{}}\n"
    call = f"        return new Problem().{name}_of_answer({arguments});\n    }}\n"
    return f"{call}{_renamed(members, name, 'main')}    static void endOfAnswer() {{\n"


def _cs(name: str, arguments: str, code: str) -> str:
    members, around = _members(_without(code, r"using [\w.= ]+;", r"namespace [\w.]+;"), name)
    if around not in ("", "Problem"):  # its Main may make one
        members += f"    class {around} : Problem {{}}\n"
    call = f"        return {name}_of_answer({arguments});\n    }}\n"
    return f"{call}{_renamed(members, name, 'Main')}    static void EndOfAnswer() {{\n"


def _members(code: str, name: str) -> tuple[str, str]:
    """What stands in the class that defines the function, and beside it; and the class's name.

    The code and "", where it is in none.
    """
    space = re.search(r"^namespace [\w.]+\s*\{", code, re.MULTILINE)
    if space:
        code = textwrap.dedent(code[space.end() : code.rfind("}")])
    place = re.search(rf"\b{re.escape(name)}\s*\(", code)
    inner = place.start() if place else 0
    for header in re.finditer(r"^(?:\w+ )*class (\w+)[^{;]{0,200}\{", code, re.MULTILINE):
        brace = re.compile(r"^\}", re.MULTILINE).search(code, header.end())
        end = brace.start() if brace else code.rfind("}")
        if header.end() <= inner < end:
            return code[: header.start()] + code[header.end() : end] + code[end + 1 :], header[1]
    return code, ""


def _php(name: str, arguments: str, code: str) -> str:
    code = _without(code, r"<\?php", r"\?>", r"declare\(")
    return f"    return {name}_of_answer({arguments});\n}}\n{_renamed(code, name)}"


def _js(name: str, arguments: str, code: str) -> str:
    code = re.sub(r"^export (?:default )?", "", code, flags=re.MULTILINE)
    code = _without(code, r"import\b.*\bfrom\b", r"(?:module\.)?exports\b", r"export \{")
    return f"    return (() => {{\n{code}return {name};\n}})()({arguments});\n}}\n"


def _sh(name: str, arguments: str, code: str) -> str:
    # What the code itself prints, such as an example of its use, is not the function's output.
    return f'{{\n{code}}} > /dev/null\n{name} "$@"\n'


# A line that begins with types and no parenthesis, up to a name whose parameters are followed by a brace.
# Bounded, so that a long text cannot take long.
_TYPED = (
    r"^[\w:<>\[\],&*?. \t]{{0,400}}[ &*>\]]{name}\s{{0,9}}\([^;{{}}]{{0,300}}\)[^;{{}}()]{{0,99}}?(?:\{{|=>)"
)
_SCRIPT = r"^[ \t]*(?:export (?:default )?)?(?:(?:async )?function\s+{name}\b|(?:const|let|var)\s+{name}\b)"

STYLES = {
    "cpp": Style("C++", ("cpp", "c++", "cc", "c"), _TYPED, r"(\w+)$", False, _cpp),
    "java": Style("Java", ("java",), _TYPED, r"(\w+)$", False, _java),
    "php": Style("PHP", ("php",), r"^[ \t]*function\s+&?{name}\b", r"(\$\w+)", True, _php),
    "ts": Style("TypeScript", ("typescript", "ts", "javascript", "js"), _SCRIPT, r"^(\w+)", True, _js),
    "cs": Style("C#", ("csharp", "cs", "c#"), _TYPED, r"(\w+)$", False, _cs),
    "sh": Style(
        "bash",
        ("bash", "sh", "shell"),
        r"^[ \t]*(?:function\s+{name}\b|{name}\s*\(\s*\))",
        r"(?!)()",
        False,
        _sh,
    ),
    "js": Style("JavaScript", ("javascript", "js", "typescript", "ts"), _SCRIPT, r"^(\w+)", True, _js),
}
