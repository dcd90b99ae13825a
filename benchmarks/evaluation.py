"""The generation of `evaluate`, all samples at once, beside one request at a time.

python benchmarks/evaluation.py
python benchmarks/evaluation.py --problems 16 --n 8 --max-gen-len 128 --rounds 5
python benchmarks/evaluation.py --device cuda --shape 7b --batch 64

The prompts are HumanEval's (extra [eval]), the weights random, so nearly all answers have the full length. Both
sides draw the same samples from the same seeds; programs are not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import fire
import torch
from peers import SHAPES, header, in_turns, make_ours, report, seconds

from llama.evaluation.generator import SampleRequest, seed_of
from llama.evaluation.local import LocalGenerator
from llama.evaluation.problem import Answer, Order
from llama.evaluation.ranks import Ranks
from llama.evaluation.settings import Settings
from llama.evaluation.tasks import TASKS
from llama.generation import Llama


@dataclass
class Way:
    """A way of asking for the same samples.

    requests: what goes to the engine together, one list after the other.
    """

    name: str
    llama: Llama
    settings: Settings
    requests: list[list[SampleRequest]]

    def answers(self) -> Iterator[Answer]:
        """All samples. Nothing is reused from the run before."""
        self.llama.forget_prefixes()
        model = self.llama.model
        for together in self.requests:
            ranks = Ranks(model.parallel, model.device, messages=1)
            yield from LocalGenerator(self.llama, ranks).generate(together, self.settings)

    def samples_per_second(self) -> float:
        """How fast they come."""
        count = 0

        def run() -> None:
            nonlocal count
            count = sum(1 for _ in self.answers())

        taken = seconds(run)
        return count / taken


def main(
    shape: str = "110m",
    dtype: str = "bfloat16",
    problems: int = 8,
    n: int = 4,
    max_gen_len: int = 64,
    batch: int = 32,
    rounds: int = 3,
    device: str = "cpu",
    threads: int = 2,
) -> None:
    """Print a table.

    Args:
        shape: 110m, 1.1b or 7b.
        dtype: bfloat16, float16 or float32.
        problems: the first so many of HumanEval.
        n: samples of each.
        max_gen_len: most new tokens of a sample.
        batch: sequences that run at the same time; the default of `codellama eval`.
        rounds: measured rounds, after one that is dropped.
        device: cpu or cuda.
        threads: CPU threads.
    """
    torch.set_num_threads(threads)
    args = replace(SHAPES[shape], max_batch_size=batch)
    made = make_ours(args, getattr(torch, dtype), torch.device(device)).llama
    llama = Llama(made.model, made.tokenizer)  # with prefix reuse, which helps both
    settings = Settings("humaneval", n=n, temperature=0.8, limit=problems, max_gen_len=max_gen_len)
    chosen = TASKS["humaneval"].problems(None)[:problems]
    whole = [SampleRequest(each, Order.PLAIN, seed_of(0, each.task_id, Order.PLAIN), 0, n) for each in chosen]
    single = [[replace(request, first=j, count=1)] for request in whole for j in range(n)]
    ways = [Way("evaluate", llama, settings, [whole]), Way("one at a time", llama, settings, single)]
    header(f"{shape}, {dtype}, {device}: generation of HumanEval", [way.name for way in ways])
    taken = in_turns(ways, Way.samples_per_second, rounds)
    report(f"{problems} problems x {n} samples of at most {max_gen_len} tokens", "samples/s", taken)


if __name__ == "__main__":
    fire.Fire(main)
