"""The chat formats as Jinja templates, for programs that render prompts themselves.

The runtime does not use them: its prompts are made of ids (llama/prompts.py). Rendered with `bos_token` and
`eos_token`, a template gives the text of those ids, control pieces spelled out.
"""

from __future__ import annotations

from .tokenizer import Tokenizer

__all__ = ["chat_template"]

_INST = (
    "{%- set system = messages[0].role == 'system' -%}"
    "{%- for message in (messages[1:] if system else messages) -%}"
    "{%- if message.role == 'user' -%}"
    "{%- set text = message.content -%}"
    "{%- if system and loop.first -%}"
    "{%- set text = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + text -%}"
    "{%- endif -%}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{%- else -%}"
    "{{ ' ' + message.content.strip() + ' ' + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
# Every header and body begins with SentencePiece's dummy space, except behind bos.
_STEP = (
    "{{ bos_token }}"
    "{%- if messages[0].role != 'system' -%}{{ ' Source: system<step>' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ (' ' if loop.first and message.role == 'system' else '  ') + 'Source: ' + message.role }}"
    "{%- set to = message.destination or ('user' if message.role == 'assistant' else '') -%}"
    "{%- if to -%}{{ '\\nDestination: ' + to.strip() }}{%- endif -%}"
    "{%- if message.content -%}{{ ' \\n\\n ' + message.content.strip() }}{%- endif -%}"
    "{{ '<step>' }}"
    "{%- endfor -%}"
    "{{ '  Source: assistant\\nDestination: user \\n\\n ' }}"
)


def chat_template(tokenizer: Tokenizer) -> str:
    """The template of a vocabulary's chat format, which ends where the answer begins."""
    return _INST if tokenizer.step_id is None else _STEP
