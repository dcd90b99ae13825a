"""Tasks of lm-eval on `LlamaLM`, and on transformers with the same weights: `lm_eval_adapter.py FOLDER PACKAGES`.

The server's Python runs this; PACKAGES, behind its own, are those of the lm-eval environment, which has no torch.
FOLDER holds the tasks and `hf`, the bundled checkpoint as transformers reads it. Prints JSON: run -> task -> the
responses to its requests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import asked

# Tokens of context; some of the texts are longer.
LENGTH = 64
TASKS = ("choose", "go_on", "read")


def responses(lm: Any, folder: Path, *tasks: str, **more: Any) -> dict[str, list[Any]]:
    """Task -> each sample's responses."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **more)
    return {
        task: [sample["resps"] for sample in sorted(found["samples"][task], key=lambda each: each["doc_id"])]
        for task in tasks
    }


def theirs(folder: Path) -> dict[str, list[Any]]:
    """What transformers says to the pairs and windows that lm-eval itself makes (HFLM would need accelerate)."""
    import torch
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "hf" / "tokenizer.json"), **pieces)
    model = LlamaForCausalLM.from_pretrained(folder / "hf", dtype="float32")

    class Plain(TemplateLM):  # type: ignore[misc]
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = tokenizer.bos_token_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            return tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

        @torch.no_grad()
        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
            found = []
            for _, context, continuation in requests:
                ids = (context + continuation)[-LENGTH:]
                logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
                rows = logs[-len(continuation) - 1 : -1]
                scores = [float(row[token]) for row, token in zip(rows, continuation, strict=True)]
                found.append((sum(scores), rows.argmax(dim=-1).tolist() == continuation))
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            found = []
            for request in requests:
                ids = self.tok_encode(request.args[0], add_special_tokens=False)
                windows = get_rolling_token_windows(ids, self.prefix_token_id, LENGTH - 1, 1)
                asked = [(None, *make_disjoint_window(window)) for window in windows]
                found.append(sum(score for score, _ in self._loglikelihood_tokens(asked)))
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            found = []
            for context, settings in (request.args for request in requests):
                new = settings["max_gen_toks"]
                ids = self.tok_encode(context)[-(LENGTH - new) :]
                made = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
                found.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
            return found

    return responses(Plain(), folder, *TASKS)


def main() -> None:
    folder, packages = Path(sys.argv[1]), sys.argv[2]
    sys.path.append(packages)
    from llama import Llama
    from llama.evaluation.harness import LlamaLM

    found: dict[str, Any] = {"theirs": theirs(folder)}
    with Llama.build(asked.ROOT / asked.MODEL, None, LENGTH, device="cpu", dtype=asked.DTYPE) as llama:
        cache = str(folder / "cache")
        found["ours"] = responses(LlamaLM(llama), folder, *TASKS, use_cache=cache)
        found["dialogs"] = responses(LlamaLM(llama), folder, "go_on", apply_chat_template=True)
        found["answers"] = [
            llama.chat_completion(
                [[{"role": "user", "content": json.loads(line)["text"]}]], temperature=0, max_gen_len=24
            )[0]["generation"]["content"]
            for line in (folder / "go_on.jsonl").read_text().splitlines()[:3]
        ]
        llama.session = None  # type: ignore[assignment]  # so that nothing can be asked again
        found["cached"] = responses(LlamaLM(llama), folder, *TASKS, use_cache=cache)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
