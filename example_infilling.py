"""Infilling: `python example_infilling.py`, or under torchrun with Meta's weights (see README.md)."""

import fire

from llama import Llama
from llama.distributed.environment import is_first_rank

# The middle goes where <FILL> stands.
PROMPTS = [
    """\
class Point:
    def __init__(self, x, y):
        self.x = x
        <FILL>

    def __repr__(self):
        return repr((self.x, self.y))
""",
    """\
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        <FILL>

    def pop(self):
        return self.items.pop()
""",
]


def main(
    ckpt_dir: str = "CodeLlama-tiny",
    tokenizer_path: str | None = None,
    temperature: float = 0.0,
    top_p: float = 0.9,
    max_seq_len: int = 192,
    max_batch_size: int = 4,
    max_gen_len: int = 128,
    suffix_first: bool = False,
    model_parallel_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 1,
    adapter: str | None = None,
    quantize: str | None = None,
    cache_dtype: str = "auto",
) -> None:
    """Print two texts with their gaps filled.

    Args:
        ckpt_dir: folder with consolidated.NN.pth and params.json.
        tokenizer_path: by default tokenizer.model in ckpt_dir.
        temperature: 0 is greedy.
        top_p: nucleus, in [0, 1].
        max_seq_len: limit of prompt and generation together, in tokens.
        max_batch_size: prompts that run at the same time.
        max_gen_len: limit of generated tokens.
        suffix_first: the suffix-prefix-middle order of the prompt.
        model_parallel_size: ranks that hold one model; by default all that were launched.
        device: auto, cuda, mps or cpu.
        dtype: auto, bfloat16, float16 or float32.
        seed: sampling repeats with it.
        adapter: folder of a LoRA adapter, as PEFT saves it, to merge into the weights.
        quantize: int8 or int4, to quantize the weights while they are read.
        cache_dtype: of keys and values: auto or int8.
    """
    llama = Llama.build(
        ckpt_dir,
        tokenizer_path,
        max_seq_len,
        max_batch_size,
        model_parallel_size,
        device=device,
        dtype=dtype,
        seed=seed,
        adapter=adapter,
        quantize=quantize,
        cache_dtype=cache_dtype,
    )
    prefixes, suffixes = zip(*(prompt.split("<FILL>") for prompt in PROMPTS), strict=True)
    results = llama.text_infilling(
        prefixes,
        suffixes,
        temperature=temperature,
        top_p=top_p,
        max_gen_len=max_gen_len,
        suffix_first=suffix_first,
    )
    if is_first_rank():
        for prompt, result in zip(PROMPTS, results, strict=True):
            print("\n================= Prompt text =================\n")
            print(prompt)
            print("\n================= Filled text =================\n")
            print(result["full_text"])


if __name__ == "__main__":
    fire.Fire(main)
