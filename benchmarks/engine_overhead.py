"""The engine's own cost of a step: everything but the model.

python benchmarks/engine_overhead.py
python benchmarks/engine_overhead.py --steps 500 --vocab 32016 --threads 2
python benchmarks/engine_overhead.py --vocab 512 --threads 1 --batches 1,8,64

A null model stands in: it has no layers, and its logits are made in advance. The benchmark measures
scheduling, the tensors of a step, sampling over the whole vocabulary, log-probabilities and text: the median
milliseconds of a decode step, for requests that are greedy, sampled, and sampled within top-p.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import fire
import torch

from llama.engine import Engine, Request
from llama.kv_cache import Step
from llama.model import ModelArgs, Transformer
from llama.sampling import GREEDY, SamplingParams
from llama.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parent.parent / "CodeLlama-tiny" / "tokenizer.model"
KINDS = {
    "greedy": GREEDY,
    "temperature 0.8": SamplingParams(0.8, 1.0),
    "temperature 0.8, top-p 0.9": SamplingParams(0.8, 0.9),
}


class NullModel(Transformer):
    """Computes nothing: each row of a step gets one of 64 rows of random logits."""

    def __init__(self, vocab: int, pieces: int) -> None:
        shape = ModelArgs(
            dim=64,
            n_layers=1,
            n_heads=4,
            vocab_size=vocab,
            multiple_of=16,
            max_batch_size=64,
            max_seq_len=100_000,
        )
        super().__init__(shape)
        self._rows = 8 * torch.randn(64, vocab, generator=torch.Generator().manual_seed(0))
        self._rows[:, pieces:] = -30.0  # ids that the tokenizer does not have

    def hidden(self, tokens_T: torch.Tensor, step: Step) -> torch.Tensor:
        return tokens_T[:, None]

    def logits(self, hidden_NC: torch.Tensor) -> torch.Tensor:
        return self._rows[: len(hidden_NC)]


def measure(
    model: NullModel, tokenizer: Tokenizer, sampling: SamplingParams, batch: int, steps: int, speculate: bool
) -> float:
    """Median milliseconds of a step that decodes one token of each of `batch` requests."""
    engine = Engine(model, tokenizer, speculate=speculate)
    for i in range(batch):
        engine.add(
            Request(
                (1, *range(3 + i, 103 + i)),
                (17 if speculate else 1) * steps + 20,
                sampling,
                seed=i,
                streaming=False,
            )
        )
    while any(s.pending != 1 for s in engine.scheduler.running) or not engine.scheduler.running:
        engine.step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        deltas = engine.step()
        seconds.append(time.perf_counter() - started)
        assert len(deltas) == batch
    return 1000 * statistics.median(seconds)


def main(
    steps: int = 200,
    vocab: int = 32016,
    threads: int = 2,
    speculate: bool = False,
    batches: tuple[int, ...] = (1, 32),
) -> None:
    """Print a row for each way of sampling and batch size.

    Args:
        steps: measured steps; the median counts.
        vocab: columns of the logits.
        threads: CPU threads.
        speculate: with the search for drafts; drafted tokens are then decided too.
        batches: how many requests decode together, at most 64. With 512 columns nearly all that is left is Python.
    """
    torch.set_num_threads(threads)
    tokenizer = Tokenizer(TOKENIZER)
    model = NullModel(vocab, tokenizer.n_words)
    print(f"vocabulary {vocab}, {threads} threads, median of {steps} steps, in milliseconds")
    for name, sampling in KINDS.items():
        for batch in batches:
            print(
                f"{name:28} batch {batch:2}: {measure(model, tokenizer, sampling, batch, steps, speculate):6.3f}"
            )


if __name__ == "__main__":
    fire.Fire(main)
