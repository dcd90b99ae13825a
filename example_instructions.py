"""Chat: `python example_instructions.py`, or under torchrun with Meta's weights (see README.md)."""

import fire

from llama import Dialog, Llama
from llama.distributed.environment import is_first_rank

DIALOGS: list[Dialog] = [
    [{"role": "user", "content": "Return the base name of a file path."}],
    [
        {"role": "system", "content": "Answer with one Python function."},
        {"role": "user", "content": "Read a line and strip the newline."},
    ],
]


def main(
    ckpt_dir: str = "CodeLlama-tiny",
    tokenizer_path: str | None = None,
    temperature: float = 0.2,
    top_p: float = 0.95,
    max_seq_len: int = 512,
    max_batch_size: int = 8,
    max_gen_len: int | None = None,
    model_parallel_size: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 1,
    adapter: str | None = None,
    quantize: str | None = None,
    cache_dtype: str = "auto",
) -> None:
    """Print answers to two dialogs.

    Args:
        ckpt_dir: folder with consolidated.NN.pth and params.json.
        tokenizer_path: by default tokenizer.model in ckpt_dir.
        temperature: 0 is greedy.
        top_p: nucleus, in [0, 1].
        max_seq_len: limit of prompt and generation together, in tokens.
        max_batch_size: dialogs that run at the same time.
        max_gen_len: limit of generated tokens.
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
    results = llama.chat_completion(DIALOGS, temperature=temperature, top_p=top_p, max_gen_len=max_gen_len)
    if is_first_rank():
        for dialog, result in zip(DIALOGS, results, strict=True):
            for message in dialog:
                print(f"{message['role'].capitalize()}: {message['content']}\n")
            answer = result["generation"]
            print(f"> {answer['role'].capitalize()}: {answer['content']}")
            print("\n==================================\n")


if __name__ == "__main__":
    fire.Fire(main)
