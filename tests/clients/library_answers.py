"""Print what the library answers to `asked`, greedily, as JSON. The server's Python runs this.

For each of completion, infilling, chat: prompt (ids), text, tokens (ids), logprobs, finish_reason, and generated, how
many tokens were, the end token among them.
"""

from __future__ import annotations

import json

import asked

from llama import Llama
from llama.prompts import chat_prompt, completion_prompt, infilling_prompt


def main() -> None:
    folder = asked.ROOT / asked.MODEL
    with Llama.build(folder, None, asked.ROOM, device="cpu", dtype=asked.DTYPE) as llama:
        tokenizer = llama.tokenizer
        prompts = {
            "completion": completion_prompt(tokenizer, asked.COMPLETION),
            "infilling": infilling_prompt(tokenizer, asked.PREFIX, asked.SUFFIX),
            "chat": chat_prompt(tokenizer, [{"role": "user", "content": asked.CHAT}]),
        }
        answers = {
            kind: {"prompt": list(prompt.tokens), "text": "", "tokens": [], "logprobs": []}
            for kind, prompt in prompts.items()
        }
        kinds = list(answers.values())
        for delta in llama.stream(list(prompts.values()), 0.0, 1.0, asked.TOKENS, logprobs=True):
            kinds[delta.index]["text"] += delta.text
            kinds[delta.index]["tokens"] += delta.tokens
            kinds[delta.index]["logprobs"] += [score.logprob for score in delta.scores]
            if delta.finish_reason is not None:
                kinds[delta.index]["finish_reason"] = str(delta.finish_reason)
                kinds[delta.index]["generated"] = delta.counts.generated
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
