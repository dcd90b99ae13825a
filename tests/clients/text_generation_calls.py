"""Calls of the text-generation package, which needs an environment of its own; prints the answers as JSON.

Arguments: the server's address. It posts every parameter, most of them null.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import asked
from text_generation import Client
from text_generation.errors import ValidationError


def main(url: str) -> None:
    client = Client(url, timeout=120)
    answers: dict[str, Any] = {}
    whole = client.generate(asked.COMPLETION, max_new_tokens=asked.TOKENS, decoder_input_details=True)
    answers["whole"] = whole.model_dump(mode="json")
    stream = client.generate_stream(asked.COMPLETION, max_new_tokens=asked.TOKENS)
    answers["stream"] = [event.model_dump(mode="json") for event in stream]
    answers["infilling"] = client.generate(asked.FILL_ME, max_new_tokens=asked.TOKENS).generated_text
    chat = client.chat([{"role": "user", "content": asked.CHAT}], max_tokens=asked.TOKENS, temperature=0.0)
    answers["chat"] = chat.choices[0].message.content
    try:
        client.generate("word " * 2 * asked.ROOM)
    except ValidationError as error:
        answers["error"] = str(error)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
