"""The chat formats of prompts.py as Jinja templates, for clients that want to see or apply one themselves.

This server never renders them: its prompts are made of exact ids.
"""

from __future__ import annotations

from ...prompts import B_INST, B_SYS, E_INST, E_SYS
from ...tokenizer import Tokenizer

__all__ = ["chat_template"]

# The variables are those of transformers: messages, bos_token, eos_token.
_INST = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system, turns = {B_SYS} + messages[0]['content'] + {E_SYS}, messages[1:] %}"
    "{% else %}{% set system, turns = '', messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'user' %}"
    "{{ bos_token + {B_INST} + ' ' + ((system if loop.first else '') + message['content'])|trim"
    " + ' ' + {E_INST} }}"
    "{% else %}{{ ' ' + message['content']|trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
for _name, _tag in {"B_SYS": B_SYS, "E_SYS": E_SYS, "B_INST": B_INST, "E_INST": E_INST}.items():
    _INST = _INST.replace("{" + _name + "}", repr(_tag))

_STEP = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ 'Source: system <step> ' }}{% endif %}"
    "{% for message in messages %}{{ 'Source: ' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{{ '\\nDestination: user' }}{% endif %}"
    "{% if message['content'] %}{{ '\\n\\n ' + message['content']|trim }}{% endif %}"
    "{{ ' <step> ' }}{% endfor %}{{ 'Source: assistant\\nDestination: user\\n\\n ' }}"
)


def chat_template(tokenizer: Tokenizer) -> str:
    """The template of a vocabulary's chat format."""
    return _INST if tokenizer.step_id is None else _STEP
