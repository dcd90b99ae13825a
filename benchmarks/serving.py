"""The engine as a server uses it: many requests, long prompts beside streams, shared prefixes, drafts, ranks.

    python benchmarks/serving.py                                  every part, 110m, bfloat16
    python benchmarks/serving.py --parts arrivals --shape 1.1b --peers llama.cpp
    python benchmarks/serving.py --parts long --tokens 100000

Parts: arrivals (32 requests over time, against one after the other and llama.cpp's batched decoding), stall
(the time between a stream's tokens while a prompt of 4,000 is prefilled), prefix (time to the first
token behind a shared prefix of 2,000), drafts (edit-like work, and work where drafts do not help), ranks (2 ranks
of one thread against one of two), long (time of a chunk against its position). Everything is taken in turns in one
run; medians.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import fire
import torch
from peers import SHAPES, VOCAB, Ours, WideTokenizer, make_ours, parts, random_prompts

from llama.engine import Engine, Request
from llama.engine import SequenceState as Running
from llama.model import ModelArgs
from llama.sampling import SamplingParams

_GREEDY = SamplingParams(temperature=0.0)
_REQUESTS, _NEW, _PLACES = 32, 64, 32


def _engine(ours: Ours, **options: Any) -> Engine:
    return Engine(ours.llama.model, ours.llama.tokenizer, **options)


def _request(prompt: Sequence[int], new: int, sampling: SamplingParams = _GREEDY, **options: Any) -> Request:
    return Request(tuple(prompt), new, sampling, **options)


def _run(engine: Engine, request: Request) -> tuple[Running, list[float]]:
    """One request alone -> its record, and when each of its steps ended, from its start."""
    started = time.perf_counter()
    engine.add(request)
    sequence, times = None, []
    while engine.unfinished:
        for delta in engine.step():
            sequence = delta.sequence
        times.append(time.perf_counter() - started)
    assert sequence is not None
    return sequence, times


# ---- requests that arrive over time ------------------------------------------------------------------


def _arrive(engine: Engine, prompts: list[list[int]], gap: float) -> tuple[list[float], float]:
    """(time to the first token of each, from its arrival; time until all have ended)."""
    started = time.perf_counter()
    due = [gap * i for i in range(len(prompts))]
    ids: dict[int, int] = {}
    first: dict[int, float] = {}
    added = 0
    while added < len(prompts) or engine.unfinished:
        now = time.perf_counter() - started
        while added < len(prompts) and due[added] <= now:
            ids[engine.add(_request(prompts[added], _NEW))] = added
            added += 1
        if not engine.unfinished:
            time.sleep(max(0.0, due[added] - now))
            continue
        deltas = engine.step()
        now = time.perf_counter() - started
        for delta in deltas:
            row = ids[delta.key[0]]
            first.setdefault(row, now - due[row])
    return [first[row] for row in range(len(prompts))], time.perf_counter() - started


def _one_by_one(run: Callable[[list[int]], list[float]], prompts: list[list[int]], gap: float) -> Any:
    """The same requests, each begun when the one before has ended. run(prompt) -> times of its tokens."""
    started = time.perf_counter()
    first = []
    for i, prompt in enumerate(prompts):
        now = time.perf_counter() - started
        if now < gap * i:
            time.sleep(gap * i - now)
        begun = time.perf_counter() - started
        first.append(begun + run(prompt)[0] - gap * i)
    return first, time.perf_counter() - started


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def arrivals(ours: Ours, shape: str, rounds: int, peers: list[str], threads: int) -> None:
    """A table of throughput and time to the first token."""
    lengths = [16 + 24 * (i * 7 % 11) for i in range(_REQUESTS)]
    prompts = random_prompts(lengths)
    run: dict[str, Callable[[float], Any]] = {
        "ours, together": lambda gap: _arrive(
            _engine(ours, prefix_reuse=False, speculate=False), prompts, gap
        ),
        "ours, one after the other": lambda gap: _one_by_one(
            lambda prompt: _run(_engine(ours, prefix_reuse=False, speculate=False), _request(prompt, _NEW))[
                1
            ],
            prompts,
            gap,
        ),
    }
    if "llama.cpp" in peers:
        from llama_cpp_peer import LlamaCpp

        peer = LlamaCpp(ours.llama.model, threads=threads, context=512, sequences=_PLACES)
        run["llama.cpp, together"] = lambda gap: peer.serve(prompts, gap, _NEW)
    # They come in about half the time that they would take one after the other in twice this speed: a busy server.
    alone = _run(_engine(ours, speculate=False), _request(prompts[0], _NEW))[1][-1]
    gap = alone / 16
    taken: dict[str, list[tuple[list[float], float]]] = {name: [] for name in run}
    for _ in range(rounds):
        for name, call in run.items():
            taken[name].append(call(gap))
    print(
        f"\n### {shape}: {_REQUESTS} requests, prompts of {min(lengths)} to {max(lengths)} tokens, {_NEW} more each,"
        f" one every {gap * 1000:.0f} ms\n\n| | tokens/s | to the first token, p50, s | p99, s |"
        " throughput of ours to it |\n|---|---|---|---|---|"
    )
    total = _REQUESTS * _NEW
    ours_seconds = [seconds for _, seconds in taken["ours, together"]]
    for name, results in taken.items():
        seconds = [each for _, each in results]
        firsts = [value for first, _ in results for value in first]
        ratios = sorted(b / a for a, b in zip(ours_seconds, seconds, strict=True))
        print(
            f"| {name} | {total / statistics.median(seconds):.1f} | {_percentile(firsts, 0.5):.2f} |"
            f" {_percentile(firsts, 0.99):.2f} | {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to"
            f" {ratios[-1]:.2f}) |",
            flush=True,
        )


# ---- one stream beside a long prompt -----------------------------------------------------------------


def stall(ours: Ours, shape: str, rounds: int) -> None:
    """Time between two tokens of a stream: usually, and while a prompt of 4,000 tokens is prefilled."""
    usual, beside, worst, prefills = [], [], [], []
    for i in range(rounds):
        engine = _engine(ours, prefix_reuse=False, speculate=False)
        stream = engine.add(_request(random_prompts([32], seed=i)[0], 1500))
        gaps: list[float] = []
        last = None
        while len(gaps) < 40:
            last = _gap(engine, stream, gaps, last)
        usual.append(statistics.median(gaps[8:]))
        other = engine.add(_request(random_prompts([4000], seed=100 + i)[0], 1))
        gaps.clear()
        started = time.perf_counter()
        done = False
        while not done:
            deltas = engine.step()
            now = time.perf_counter()
            done = any(delta.key[0] == other for delta in deltas)
            if any(delta.key[0] == stream for delta in deltas):
                assert last is not None
                gaps.append(now - last)
                last = now
        prefills.append(time.perf_counter() - started)
        beside.append(statistics.median(gaps))
        worst.append(_percentile(gaps, 0.99))
        engine.cancel(stream)
    ratios = sorted(b / a for a, b in zip(usual, beside, strict=True))
    high = sorted(b / a for a, b in zip(usual, worst, strict=True))
    print(
        f"\n### {shape}: a stream while a prompt of 4,000 tokens is prefilled\n\n| usual gap, ms |"
        " beside the prompt, ms |"
        " of usual, median (range) | p99 of usual, median | the prompt took, s |\n|---|---|---|---|---|\n"
        f"| {statistics.median(usual) * 1e3:.1f} | {statistics.median(beside) * 1e3:.1f} |"
        f" {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {statistics.median(high):.2f} x |"
        f" {statistics.median(prefills):.1f} |",
        flush=True,
    )


def _gap(engine: Engine, stream: int, gaps: list[float], last: float | None) -> float:
    deltas = engine.step()
    now = time.perf_counter()
    if last is not None and any(delta.key[0] == stream for delta in deltas):
        gaps.append(now - last)
    return now


# ---- shared prefixes -----------------------------------------------------------------------------------


def prefix(ours: Ours, shape: str, rounds: int) -> None:
    """Time to the first token of two requests that share 2,000 tokens."""
    cold, warm, reused = [], [], []
    for i in range(rounds):
        engine = _engine(ours)
        [shared, one, two] = random_prompts([2000, 24, 24], seed=i)
        cold.append(_run(engine, _request(shared + one, 4))[1][0])
        sequence, times = _run(engine, _request(shared + two, 4))
        warm.append(times[0])
        reused.append(sequence.counts.reused)
    ratios = sorted(a / b for a, b in zip(cold, warm, strict=True))
    print(
        f"\n### {shape}: a second request with the same first 2,000 tokens\n\n| first, ms | second, ms |"
        f" less, median (range) | tokens reused |\n|---|---|---|---|\n"
        f"| {statistics.median(cold) * 1e3:.0f} | {statistics.median(warm) * 1e3:.1f} |"
        f" {statistics.median(ratios):.1f} x ({ratios[0]:.1f} to {ratios[-1]:.1f}) | {min(reused)} |",
        flush=True,
    )


# ---- drafts ----------------------------------------------------------------------------------------------


def drafts(ours: Ours, shape: str, rounds: int) -> None:
    """Decode speed with drafts over decode speed without.

    The model's weights are random, so what it will say is found by letting it say it; the prediction is that
    text with one line in ten, 12 tokens, replaced: as a function that is repeated with lines changed.
    """
    new = 400
    prompt = random_prompts([64])[0]
    plain, _ = _run(_engine(ours, speculate=False), _request(prompt, new))
    truth = plain.output
    edited = list(truth)
    changed = random_prompts([12], seed=5)[0]
    edited[180:192] = changed
    cases: dict[str, dict[str, Any]] = {
        "greedy, prediction with one line of 12 tokens changed": {"prediction": tuple(edited)},
        "greedy, no prediction (what random weights say repeats itself)": {},
        "sampled at temperature 1, where no draft is ever right": {
            "sampling": SamplingParams(temperature=1.0)
        },
        "the same, with a wrong prediction": {
            "sampling": SamplingParams(temperature=1.0),
            "prediction": tuple(random_prompts([new], seed=9)[0]),
        },
    }
    print(
        f"\n### {shape}: drafts, {new} tokens\n\n| | of the speed without, median (range) |"
        " tokens the same |\n|---|---|---|"
    )
    for name, options in cases.items():
        ratios, same = [], []
        for _ in range(rounds):
            plain_options = {key: value for key, value in options.items() if key == "sampling"}
            base = _decode_seconds(_engine(ours, speculate=False), _request(prompt, new, **plain_options))
            fast = _decode_seconds(_engine(ours), _request(prompt, new, **options))
            ratios.append(base[0] / fast[0])
            same.append(base[1] == fast[1])
        ratios.sort()
        print(
            f"| {name} | {statistics.median(ratios):.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            f" {'yes' if all(same) else 'no: other near-ties in 16 bit'} |",
            flush=True,
        )


def _decode_seconds(engine: Engine, request: Request) -> tuple[float, list[int]]:
    sequence, times = _run(engine, request)
    return times[-1] - times[0], sequence.output


# ---- ranks -----------------------------------------------------------------------------------------------


def rank_worker(shape: str, dtype: str, threads: int) -> None:
    """Under torchrun or alone: decode, and what the collectives of a step cost alone."""
    import os

    from llama.checkpoint import load_weights
    from llama.checkpoint.base import Checkpoint
    from llama.distributed.world import join, leave

    torch.set_num_threads(threads)
    args = SHAPES[shape]
    size = int(os.environ.get("WORLD_SIZE", "1"))
    parallel = join(size, torch.device("cpu"))
    from llama.model import Transformer

    with torch.device("meta"):
        model = Transformer(args, parallel=parallel)

    class Random(Checkpoint):
        """Weights of a fixed seed, the same on every number of ranks."""

        layout, files, mapped = "Meta", [], []

        def __init__(self) -> None:
            self.args, self.dtype = args, getattr(torch, dtype)

        @classmethod
        def recognizes(cls, folder: Any) -> bool:
            return False

        def stored(self) -> Any:
            return iter(())

        def parts(self, name: str, rows: Any, columns: Any) -> Any:
            from llama.checkpoint.base import Part
            from llama.sizing.shapes import expected_shapes

            shape_of = expected_shapes(args)[name]
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            whole = torch.empty(shape_of, dtype=self.dtype)
            whole = whole.fill_(1) if len(shape_of) == 1 else whole.normal_(0, 0.02, generator=generator)
            if columns is None:
                yield Part(whole[rows[0] : rows[1]], slice(0, rows[1] - rows[0]), None)
            else:
                source = whole[rows[0] : rows[1], columns[0] : columns[1]].contiguous()
                yield Part(source, slice(0, source.shape[0]), slice(0, source.shape[1]))

    load_weights(model, Random(), torch.device("cpu"), getattr(torch, dtype))
    from peers import TOKENIZER, settle

    settle()
    engine = Engine(model.eval(), WideTokenizer(TOKENIZER), prefix_reuse=False, speculate=False)
    speeds = []
    for i in range(4):
        _, times = _run(engine, _request(random_prompts([32], seed=i)[0], 48))
        speeds.append((len(times) - 1) / (times[-1] - times[0]))
    x = torch.zeros(1, args.dim, dtype=getattr(torch, dtype))
    started = time.perf_counter()
    for _ in range(200):
        parallel.all_reduce(x)
    reduce = (time.perf_counter() - started) / 200
    if parallel.rank == 0:
        figures = {"speed": statistics.median(speeds[1:]), "reduce": reduce, "reduces": 2 * args.n_layers}
        print("RESULT", json.dumps(figures), flush=True)
    leave(parallel)


def ranks(shape: str, dtype: str, rounds: int) -> None:
    """Decode on 2 ranks of one thread against one rank of two."""
    one, two, reduce, count = [], [], [], 0
    for _ in range(rounds):
        for number, speeds in ((1, one), (2, two)):
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
            flags = ["--parts=rank_worker", f"--shape={shape}", f"--dtype={dtype}", f"--threads={3 - number}"]
            command = [sys.executable, *(launcher if number > 1 else []), __file__, *flags]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures = json.loads(
                next(line for line in out.splitlines() if "RESULT" in line).split("RESULT")[1]
            )
            speeds.append(figures["speed"])
            if number == 2:
                reduce.append(figures["reduce"])
                count = figures["reduces"]
    ratios = sorted(b / a for a, b in zip(one, two, strict=True))
    share = statistics.median(r * count * s for r, s in zip(reduce, two, strict=True))
    print(
        f"\n### {shape}, {dtype}: 2 ranks of one thread against 1 rank of two, decode\n\n| 1 rank, tokens/s |"
        " 2 ranks | median (range) | one all-reduce alone, µs | all-reduces of a token | their share of its time |\n"
        "|---|---|---|---|---|---|\n"
        f"| {statistics.median(one):.1f} | {statistics.median(two):.1f} | {statistics.median(ratios):.2f} x"
        f" ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {statistics.median(reduce) * 1e6:.0f} | {count} | {share:.0%} |",
        flush=True,
    )


# ---- a long prompt -----------------------------------------------------------------------------------------


def long(args: ModelArgs, shape: str, dtype: torch.dtype, tokens: int) -> None:
    """Time of a chunk against its position, and memory, of one very long prompt."""
    from dataclasses import replace

    ours = make_ours(replace(args, max_seq_len=tokens + 16, max_batch_size=1), dtype, torch.device("cpu"))
    engine = _engine(ours, prefix_reuse=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine.add(_request(random_prompts([tokens])[0], 4))
    print(f"\n### {shape}: a prompt of {tokens:,} tokens\n\n| position | s per 1,024 tokens |\n|---|---|")
    done, since, begun = 0, 0.0, time.perf_counter()
    next_row = 0
    while engine.unfinished:
        started = time.perf_counter()
        engine.step()
        since = time.perf_counter() - started
        if done < tokens and done >= next_row:
            print(f"| {done:,} | {since:.2f} |", flush=True)
            next_row = max(2 * next_row, 1024)
        done += 1024
    cache = 2 * args.n_layers * args.kv_heads * args.head_dim * dtype.itemsize * tokens / (1 << 20)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    total = time.perf_counter() - begun
    print(
        f"\nIn all {total:.0f} s; memory grew by {grown:.0f} MiB, of which {cache:.0f} are keys and values.",
        flush=True,
    )


def main(
    parts_of: str = "",
    shape: str = "110m",
    dtype: str = "bfloat16",
    rounds: int = 3,
    threads: int = 2,
    peers: str = "llama.cpp",
    tokens: int = 100_000,
    **flags: str,
) -> None:
    """Print a table for each part.

    Args:
        parts_of: also --parts: of arrivals, stall, prefix, drafts, ranks, long, with commas; by default all but long.
        shape: 110m or 1.1b.
        dtype: bfloat16 or float32.
        rounds: turns of each measurement.
        threads: CPU threads.
        peers: llama.cpp, or nothing.
        tokens: of the prompt of `long`.
    """
    wanted = parts(flags.get("parts", parts_of) or "arrivals,stall,prefix,drafts,ranks")
    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    if wanted == ["rank_worker"]:
        return rank_worker(shape, dtype, threads)
    if "ranks" in wanted:
        ranks(shape, dtype, rounds)
    if "long" in wanted:
        long(SHAPES[shape], shape, kind, tokens)
    if not {"arrivals", "stall", "prefix", "drafts"} & set(wanted):
        return None
    from dataclasses import replace

    ours = make_ours(replace(SHAPES[shape], max_batch_size=_PLACES), kind, torch.device("cpu"))
    assert ours.llama.model.vocab_size == VOCAB
    if "arrivals" in wanted:
        arrivals(ours, f"{shape}, {dtype}", rounds, parts(peers), threads)
    for name, part in (("stall", stall), ("prefix", prefix), ("drafts", drafts)):
        if name in wanted:
            part(ours, f"{shape}, {dtype}", rounds)
    return None


if __name__ == "__main__":
    fire.Fire(main)
