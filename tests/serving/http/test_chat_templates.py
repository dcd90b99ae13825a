"""The chat formats as Jinja templates, against the prompts of exact ids."""

from __future__ import annotations

import jinja2
import pytest
from tiny_tokenizers import tiny_tokenizer

from llama.prompts import answer_message, chat_prompt, render_prompt
from llama.serving.http.chat_templates import chat_template

USER = {"role": "user", "content": " return a list \n"}
DIALOGS = [
    [USER],
    [{"role": "system", "content": "be brief "}, USER],
    [{"role": "system", "content": "be brief"}, USER, {"role": "assistant", "content": " a\n"}, USER],
]


@pytest.mark.parametrize("kind", ["plain", "step"])
@pytest.mark.parametrize("dialog", DIALOGS, ids=len)
def test_a_rendered_template_reads_as_the_prompt(kind: str, dialog) -> None:
    tokenizer = tiny_tokenizer(kind)
    rendered = jinja2.Template(chat_template(tokenizer)).render(
        messages=dialog, bos_token="⟨bos⟩", eos_token="⟨eos⟩"
    )
    addressed = [
        answer_message(tokenizer, each["content"]) if each["role"] == "assistant" else each for each in dialog
    ]
    shown = render_prompt(tokenizer, chat_prompt(tokenizer, addressed).tokens)
    # SentencePiece puts a space in front of each text that is encoded by itself.
    if kind == "plain":
        assert rendered == shown.replace("⟨bos⟩ ", "⟨bos⟩")
    else:
        assert "".join(rendered.replace("<step>", "⟨step⟩").split(" ")) == "".join(shown.split(" "))
