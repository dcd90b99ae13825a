"""Prompt formats: text in, ids and their stop rule out.

Every format's function returns a `Prompt`: the ids that a model was trained to continue, the ids that end its
answer, and how the answer's text begins. Knows the formats; knows nothing of models, lengths or sampling.
Imports no torch.

    completion     [bos] text                                          stops at eos
    infilling PSM  [bos] [PRE] prefix [SUF] suffix [MID]               stops at EOT, eos
    infilling SPM  [bos] [PRE] [SUF] suffix [MID] prefix               stops at EOT, eos
    chat, [INST]   ([bos] [INST] user [/INST] answer [eos])* [bos] [INST] user [/INST]    stops at eos
    chat, <step>   [bos] (Source: role [Destination: d] content [step])* Source: assistant ...
                                                                       stops at step, eos
The tokenizer's pieces decide which chat format applies and whether infilling is possible.

To add a format: a function here that returns a `Prompt`, its row above, and its golden ids in
tests/test_prompts.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from .errors import DialogError, PromptError, UnsafeTagError, UnsupportedError
from .tokenizer import Tokenizer
from .values import rows

__all__ = [
    "B_INST",
    "B_SYS",
    "E_INST",
    "E_SYS",
    "FILL_MARKS",
    "SPECIAL_TAGS",
    "UNSAFE_ERROR",
    "Dialog",
    "Message",
    "Prompt",
    "Role",
    "answer_message",
    "chat_prompt",
    "completion_prompt",
    "infilling_prompt",
    "render_prompt",
    "split_fill",
]

B_INST, E_INST = "[INST]", "[/INST]"
B_SYS, E_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
STEP = "<step>"
SPECIAL_TAGS = [B_INST, E_INST, "<<SYS>>", "<</SYS>>", STEP]
UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."

# A tag is refused only by the format that uses it: `<step>` is plain code for an [INST] model.
_INST_TAGS = tuple(tag for tag in SPECIAL_TAGS if tag != STEP)
_STEP_TAGS = (STEP,)
FILL_MARKS = ("<FILL>", "<FILL_ME>")

Role = Literal["system", "user", "assistant"]


class _MessageBase(TypedDict):
    role: Role
    content: str


class Message(_MessageBase, total=False):
    """One message of a dialog. Only the 70B format (<step>) uses `destination`; [INST] ignores it."""

    destination: str


Dialog = list[Message]


@dataclass(frozen=True)
class Prompt:
    """The ids that a model continues, and the rule that ends its answer.

    tokens: ids, bos first.
    stop_ids: ids that end the answer and are not part of it.
    start_of_text: the answer begins a text of its own, so that SentencePiece's dummy space in front of it is
        dropped: in chat, behind an empty prompt and, in the SPM order, behind an empty prefix. Otherwise it
        continues the prompt's text and keeps its first space (completion, infilling).
    """

    tokens: tuple[int, ...]
    stop_ids: frozenset[int]
    start_of_text: bool


def completion_prompt(tokenizer: Tokenizer, text: str, *, allow_control: bool = False) -> Prompt:
    """The prompt that continues `text`. For `allow_control` see `Tokenizer.encode`.

    Raises:
        PromptError: `text` is not a str, or holds a lone surrogate.
    """
    tokens = tokenizer.encode(text, bos=True, eos=False, allow_control=allow_control)
    stops = {tokenizer.eos_id}
    if allow_control:
        # A prompt written by hand may be of another format: that one's stop ids count too.
        stops |= {token for token in (tokenizer.eot_id, tokenizer.step_id) if token is not None}
    return Prompt(tuple(tokens), frozenset(stops), start_of_text=text == "")


def infilling_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, *, suffix_first: bool = False) -> Prompt:
    """The prompt that fills the middle between `prefix` and `suffix`; either may be empty.

    `suffix_first` selects the SPM order, in which the answer follows the prefix directly; else PSM.
    Source: the Code Llama paper (arXiv 2308.12950, section 2.3) and the reference's token order.

    Raises:
        UnsupportedError: the vocabulary lacks infilling pieces; the message names them.
        PromptError: a part is not a str, or holds a lone surrogate.
    """
    pre, suf, mid, eot = (
        tokenizer.prefix_id,
        tokenizer.suffix_id,
        tokenizer.middle_id,
        tokenizer.eot_id,
    )
    if pre is None or suf is None or mid is None or eot is None:
        pieces = {"▁<PRE>": pre, "▁<SUF>": suf, "▁<MID>": mid, "▁<EOT>": eot}
        absent = ", ".join(piece for piece, token_id in pieces.items() if token_id is None)
        raise UnsupportedError(
            f"this model cannot fill in the middle: its vocabulary of {tokenizer.n_words} has no {absent};"
            " the base and Instruct models of 7B and 13B can"
        )
    before = tokenizer.encode(prefix, bos=False, eos=False)
    after = tokenizer.encode_infilling(suffix)
    if suffix_first:
        tokens = [tokenizer.bos_id, pre, suf, *after, mid, *before]
    else:
        tokens = [tokenizer.bos_id, pre, *before, suf, *after, mid]
    # In training with the SPM order prefix and middle were one text, so without a prefix the middle begins
    # with the dummy space. With the PSM order a middle never does.
    alone = suffix_first and not before
    return Prompt(tuple(tokens), frozenset({eot, tokenizer.eos_id}), start_of_text=alone)


def split_fill(text: str) -> tuple[str, str]:
    """Prefix and suffix of a text that holds one `<FILL>` or `<FILL_ME>`.

    Raises:
        PromptError: it holds none, or more than one, or is not a str.
    """
    if not isinstance(text, str):
        raise PromptError(f"text must be a str, got {type(text).__name__}")
    count = sum(text.count(mark) for mark in FILL_MARKS)
    if count != 1:
        raise PromptError(
            f"expected exactly one {' or '.join(FILL_MARKS)} in the text to fill in, found {count}"
        )
    mark = next(mark for mark in FILL_MARKS if mark in text)
    prefix, suffix = text.split(mark)
    return prefix, suffix


def chat_prompt(tokenizer: Tokenizer, dialog: Iterable[Message]) -> Prompt:
    """The prompt that answers a dialog, in the vocabulary's chat format: [INST], or `<step>` if it has it.

    A dialog is a list of messages: at first one of the system, or none; then user and assistant in turn, the
    user first and last.

    Raises:
        DialogError: any other order; the message names the place and what was expected there.
        UnsafeTagError: a message holds a tag of the format.
        PromptError: a message holds a lone surrogate.
    """
    messages = rows(dialog)
    if messages is None:
        raise DialogError(f"a dialog must be a list of messages, got {type(dialog).__name__}")
    if tokenizer.step_id is not None:
        _check_dialog(messages, _STEP_TAGS, with_destination=True)
        return _step_prompt(tokenizer, tokenizer.step_id, messages)
    _check_dialog(messages, _INST_TAGS, with_destination=False)
    return _inst_prompt(tokenizer, messages)


def answer_message(tokenizer: Tokenizer, text: str) -> Message:
    """A model's answer as a message of its dialog; with `<step>` it also names its destination, the user."""
    if tokenizer.step_id is None:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "destination": "user", "content": text}


def render_prompt(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Ids in readable form: control ids as `⟨bos⟩`, `⟨PRE⟩`, text as the model sees it.

    Text between two control ids keeps the dummy space it was encoded with. A `⟨` in the text is doubled,
    `⟨⟨bos⟩`, so that it cannot be mistaken for a control id.

    Raises:
        TokenizerError: an id outside the vocabulary.
    """
    parts: list[str] = []
    run: list[int] = []
    for token_id in tokens:
        name = _control_name(tokenizer, token_id)
        if name is None:
            run.append(token_id)
            continue
        parts += [tokenizer.decode_infilling(run).replace("⟨", "⟨⟨"), f"⟨{name}⟩"]
        run = []
    return "".join(parts) + tokenizer.decode_infilling(run).replace("⟨", "⟨⟨")


def _control_name(tokenizer: Tokenizer, token_id: int) -> str | None:
    names = {
        tokenizer.pad_id: "pad",
        tokenizer.unk_id: "unk",
        tokenizer.bos_id: "bos",
        tokenizer.eos_id: "eos",
    }
    if token_id in names:
        return names[token_id]
    if token_id in tokenizer.control_ids:
        return tokenizer.token_piece(token_id).strip("▁<>")
    return None


def _inst_prompt(tokenizer: Tokenizer, dialog: Sequence[Message]) -> Prompt:
    contents = [message["content"] for message in dialog]
    if dialog[0]["role"] == "system":
        contents = [B_SYS + contents[0] + E_SYS + contents[1], *contents[2:]]
    # As in the reference, stripped only after the system block is in front: the block is part of the turn.
    contents = [content.strip() for content in contents]
    tokens: list[int] = []
    for user, answer in zip(contents[0:-1:2], contents[1::2], strict=True):
        tokens += tokenizer.encode(f"{B_INST} {user} {E_INST} {answer} ", bos=True, eos=True)
    tokens += tokenizer.encode(f"{B_INST} {contents[-1]} {E_INST}", bos=True, eos=False)
    return Prompt(tuple(tokens), frozenset({tokenizer.eos_id}), start_of_text=True)


def _step_prompt(tokenizer: Tokenizer, step_id: int, dialog: Sequence[Message]) -> Prompt:
    # The format always begins with a system message, even an empty one.
    if dialog[0]["role"] != "system":
        dialog = [Message(role="system", content=""), *dialog]
    tokens = [tokenizer.bos_id]
    # Header and body are encoded separately: each begins with its own dummy space.
    for message in dialog:
        tokens += tokenizer.encode(_header(message["role"], message.get("destination")), bos=False, eos=False)
        if message["content"]:
            tokens += tokenizer.encode("\n\n " + message["content"].strip(), bos=False, eos=False)
        tokens.append(step_id)
    tokens += tokenizer.encode(_header("assistant", "user"), bos=False, eos=False)
    tokens += tokenizer.encode("\n\n ", bos=False, eos=False)
    return Prompt(tuple(tokens), frozenset({step_id, tokenizer.eos_id}), start_of_text=True)


def _header(role: str, destination: str | None) -> str:
    return f" Source: {role}" + (f"\nDestination: {destination.strip()}" if destination is not None else "")


def _check_dialog(dialog: Sequence[Message], tags: tuple[str, ...], *, with_destination: bool) -> None:
    """Check types, then the order of roles, then tags, so that the error raised is the first cause."""
    if not dialog:
        raise DialogError("the dialog is empty; it needs at least one message with role 'user'")
    for index, message in enumerate(dialog):
        _check_message(index, message, with_destination)
    _check_order([message["role"] for message in dialog])
    for index, message in enumerate(dialog):
        texts = [message["content"]]
        if with_destination:
            texts.append(message.get("destination") or "")
        for tag in tags:
            if any(tag in text for text in texts):
                raise UnsafeTagError(tag, index)


def _check_message(index: int, message: object, with_destination: bool) -> None:
    where = f"message {index} of the dialog"
    if not isinstance(message, Mapping):
        raise DialogError(f"{where} must be a dict with 'role' and 'content', got {type(message).__name__}")
    for key in ("role", "content"):
        if key not in message:
            raise DialogError(f"{where} has no {key!r}; it has {sorted(map(str, message))}")
        if not isinstance(message[key], str):
            raise DialogError(f"{where}: {key!r} must be a str, got {type(message[key]).__name__}")
    if message["role"] not in ("system", "user", "assistant"):
        raise DialogError(
            f"{where} has the unknown role {message['role']!r}; expected 'system', 'user' or 'assistant'"
        )
    destination = message.get("destination")
    if not with_destination or destination is None:
        return
    # A line break would let the caller add header lines.
    if not isinstance(destination, str) or len(destination.strip().splitlines()) != 1:
        raise DialogError(f"{where}: 'destination' must be a str of one line, got {destination!r}")


def _check_order(roles: Sequence[str]) -> None:
    first = 1 if roles[0] == "system" else 0
    if len(roles) == first:
        raise DialogError(
            "the dialog has only a system message (index 0); expected a message with role 'user' after it"
        )
    for index, role in enumerate(roles[first:]):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise DialogError(
                f"message {first + index} of the dialog has role {role!r}, expected {expected!r}:"
                " after at most one system message, user and assistant take turns"
            )
    if roles[-1] != "user":
        raise DialogError(
            f"message {len(roles) - 1}, the last of the dialog, has role {roles[-1]!r}, expected 'user':"
            " it is the message to answer"
        )
