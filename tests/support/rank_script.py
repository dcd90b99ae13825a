"""What the tests of ranks run on every rank: `rank_script.py FOLDER SCENARIO...`.

FOLDER holds the checkpoints s1, s2, s4 (the same weights in so many shards), nan (one row of the embedding
is NaN) and wide (heads of 32 numbers). Each scenario writes what it saw to FOLDER/out-<world>/<scenario>.<rank>.json.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import runpy
import sys
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from llama import Llama, cli
from llama.distributed import world
from llama.distributed.devices import rank_threads
from llama.errors import LlamaError
from llama.evaluation.harness import LlamaLM
from llama.evaluation.scoring import score, texts_of_first_rank
from llama.kernels import compiled

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
SHARDS = (1, 2, 4)
PROMPTS = ["def return self value", "é 漢字 <PRE> x", "for i in range(10):", "class", "import list index"]
LONG = "def return self value list for i in range(10): import " * 2
NAN_ID = 300
# Seconds: a rank that waits for the others this long at its end hangs, as far as a test can see.
NEVER = 3600
EXAMPLES = ("completion", "infilling", "instructions")


def build(folder: Path, size: int | None, name: str = "s2") -> Llama:
    return Llama.build(folder / name, None, 96, 8, size, device="cpu", dtype="float32")


def short_texts(llama: Llama) -> dict[str, Any]:
    """The cheaper half of `texts`."""
    greedy = llama.text_completion(PROMPTS, temperature=0, max_gen_len=12, logprobs=2)
    sampled = llama.text_completion(PROMPTS, temperature=0.9, top_p=0.95, max_gen_len=12, seed=7, n=2)
    scored = llama.text_completion(PROMPTS[:3], temperature=0, max_gen_len=0, logprobs=True, echo=True)
    return {"greedy": greedy, "sampled": [each["generation"] for each in sampled], "scored": scored}


def texts(llama: Llama) -> dict[str, Any]:
    """What must not depend on shards, ranks and replicas."""
    # More samples than run at the same time: replicas share them out.
    many = llama.text_completion(PROMPTS[:2], 1.2, 1.0, 8, seed=8, n=11)
    unseeded, drawn = without_seed(llama)
    return short_texts(llama) | {
        "many": [each["generation"] for each in many],
        "unseeded": unseeded,
        "drawn": drawn,
    }


def without_seed(llama: Llama) -> tuple[list[str], bool]:
    """Samples after the host seeded torch, differently on each rank; whether each call drew once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 + 100 * RANK)
        results = [llama.text_completion(PROMPTS, 0.9, 0.95, 12, n=2) for _ in range(2)]
        texts = [each["generation"] for call in results for each in call]
        after = torch.get_rng_state()
        torch.manual_seed(1 + 100 * RANK)
        for _ in results:
            torch.randint(2**63 - 1, ())
        return texts, torch.equal(after, torch.get_rng_state())


def raised(action: Callable[[], Any]) -> dict[str, str] | None:
    try:
        action()
    except LlamaError as error:
        return {"type": type(error).__name__, "text": str(error)}
    return None


# ---- scenarios that end well ----------------------------------------------------------------------


def shards(folder: Path) -> Any:
    """Every number of shards on all ranks, one after the other in one program."""
    found = {}
    for count in SHARDS:
        with build(folder, None, f"s{count}") as llama:
            found[str(count)] = (texts if count == 2 else short_texts)(llama) | {
                "size": llama.model.parallel.size,
                "bytes": sum(p.nbytes for p in llama.model.parameters()),
                "kv_heads": llama.model.local_kv_heads,
            }
    return found | {"initialized": dist.is_available() and dist.is_initialized()}


def sizes(folder: Path) -> Any:
    """Models of different sizes at the same time, closed one after the other."""
    whole, half = build(folder, WORLD), build(folder, WORLD // 2)
    found = {"whole": short_texts(whole), "half": short_texts(half)}
    whole.close()
    still = dist.is_initialized()
    found["half again"] = short_texts(half)
    half.close()
    half.close()
    return found | {"still": still, "initialized": dist.is_initialized()}


def replicas(folder: Path) -> Any:
    """Several replicas: prompts shared out, results gathered, errors of one raised on all."""
    with build(folder, WORLD // 2) as llama:
        found = {"replicas": llama.model.parallel.replicas, "texts": texts(llama), "stream": {}}
        for delta in llama.stream(PROMPTS, temperature=0, max_gen_len=12):
            found["stream"].setdefault(str(delta.index), []).append([delta.text, delta.finish_reason])
        found["fewer prompts than replicas"] = llama.text_completion(
            PROMPTS[:1], temperature=0, max_gen_len=12
        )
        found["bad call"] = raised(lambda: llama.text_completion(["a"], temperature=-1))
    return found


def scores(folder: Path) -> Any:
    """`score`, and what lm-eval asks, of one model over all ranks and of replicas; then the verb, on all ranks."""
    found: dict[str, Any] = {}
    for name, size in (("whole", WORLD), ("half", WORLD // 2)):
        with build(folder, size) as llama:
            found[name] = score_texts(llama)
    out = io.StringIO()
    # Only the first rank has files and standard input.
    stdin = io.TextIOWrapper(io.BytesIO(LONG.encode() if RANK == 0 else b""))
    with contextlib.redirect_stdout(out), unittest.mock.patch("sys.stdin", stdin):
        arguments = ["score", folder / "s2", "-", "--max-seq-len", 96, "--dtype", "float32"]
        code = cli.main([*map(str, arguments)] + ([] if RANK else [str(folder / "s2" / "params.json")]))
    return found | {"code": code, "out": out.getvalue()}


def score_texts(llama: Llama) -> dict[str, Any]:
    """Scores of texts shorter and longer than the context, and the adapter's answers."""
    lm = LlamaLM(llama)
    texts = [*PROMPTS, "", LONG]
    pairs = [SimpleNamespace(args=(PROMPTS[0], prompt)) for prompt in PROMPTS]
    answers = [
        SimpleNamespace(args=(prompt, {"max_gen_toks": 5 + i % 2})) for i, prompt in enumerate(PROMPTS)
    ]
    return {
        "nats": [each.nats for each in score(llama, texts)],
        "pairs": lm.loglikelihood(pairs),
        "rolling": lm.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts]),
        "answers": lm.generate_until(answers),
        "shared": texts_of_first_rank(llama, texts if RANK == 0 else None) == texts,
    }


def nan(folder: Path) -> Any:
    """A prompt whose logits are not finite, on all ranks and on one replica only."""
    prompts = [[1, 10, 11], [1, NAN_ID, 11], [1, 12, 13], [1, 14, 15]]
    found = {}
    for name, size in (("whole", WORLD), ("half", WORLD // 2)):
        with build(folder, size, "nan") as llama:

            def call(rows: list[list[int]] = prompts, llama: Llama = llama) -> list[list[int]]:
                return llama.generate(rows, 6, temperature=0)[0]

            found[name] = {"error": raised(call), "afterwards": call([prompts[0], prompts[2]])}
            bad = llama.tokenizer.decode([NAN_ID])
            stream = llama.stream(["x", bad, "y"], temperature=0, max_gen_len=6)
            found[name]["stream"] = raised(lambda stream=stream: list(stream))
    return found


def changed(folder: Path) -> Any:
    """One rank edits a weight, noticed by itself or announced: all ranks forget their prefixes."""
    found: dict[str, Any] = {}
    with build(folder, WORLD) as llama:
        fresh = Llama(llama.model, llama.tokenizer, prefix_reuse=False)

        def scores(of: Llama) -> list[float]:
            result = of.text_completion([LONG], temperature=0, max_gen_len=6, logprobs=True)
            return result[0]["logprobs"]

        found["before"] = scores(llama)
        wo = llama.model.layers[0].attention.wo
        if RANK == WORLD - 1:
            with torch.no_grad():
                wo.weight.mul_(5)
        found["seen"] = [scores(llama), scores(fresh)]
        if RANK == WORLD - 1:
            wo.weight.data.mul_(torch.tensor(0.1))
            llama.forget_prefixes()
        found["told"] = [scores(llama), scores(fresh)]
        reused = [d.counts.reused for d in llama.stream([LONG], temperature=0, max_gen_len=2) if d.counts]
    return found | {"reused": reused}


def nodes(folder: Path) -> Any:
    """On two machines: one model over the ranks of both, then a replica on each."""
    found = {}
    for name, size in (("whole", WORLD), ("half", WORLD // 2)):
        with build(folder, size) as llama:
            found[name] = {"texts": short_texts(llama), "shared": llama.model.parallel.shared is not None}
    return found


def refusals(folder: Path) -> Any:
    return {str(size): raised(lambda size=size: build(folder, size)) for size in (3, 2 * WORLD, 5 * WORLD)}


def dtypes(folder: Path) -> Any:
    """The last rank's CPU takes another dtype than the others'."""
    dtype = "float32" if RANK == WORLD - 1 else "bfloat16"
    return raised(lambda: Llama.build(folder / "s2", None, 96, 8, device="cpu", dtype=dtype))


def int8_cache(folder: Path) -> Any:
    """Keys and values in int8, on all ranks; and where the last rank wants floats."""

    def build(cache_dtype: str) -> Llama:
        where: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
        return Llama.build(folder / "wide", None, 96, 8, **where, cache_dtype=cache_dtype)

    with build("int8") as llama:
        found = short_texts(llama) | {"bytes": llama.engine.memory.pool.store.dtype == torch.int8}
    return found | {"differ": raised(lambda: build("auto" if RANK == WORLD - 1 else "int8"))}


def host(folder: Path) -> Any:
    """A program that set up torch.distributed itself keeps its group, and its number of threads."""
    dist.init_process_group("gloo")
    before = torch.get_num_threads()
    with build(folder, WORLD) as llama:
        text = llama.text_completion(PROMPTS[:1], temperature=0, max_gen_len=12)[0]["generation"]
    total = torch.ones(1)
    dist.all_reduce(total)
    found = {"text": text, "total": total.item(), "threads": [before, torch.get_num_threads()]}
    dist.destroy_process_group()
    return found


def threads(folder: Path) -> Any:
    outside = torch.get_num_threads()
    with rank_threads(torch.device("cpu")):
        inside = torch.get_num_threads()
    return {"outside": outside, "inside": inside, "after": torch.get_num_threads()}


def examples(folder: Path) -> Any:
    """The three examples as they are: what they print is all that this script prints. They never close."""
    for name in EXAMPLES:
        sys.argv = [f"example_{name}.py", "--temperature", "0", "--dtype", "float32", "--max_gen_len", "24"]
        runpy.run_path(f"example_{name}.py", run_name="__main__")


# ---- scenarios that end badly ---------------------------------------------------------------------


def refused(folder: Path) -> Any:
    """An error of all ranks that nobody catches. It is found without asking the others, and the first rank
    to end ends all: so each waits here until all have written what came before."""
    while not all(_result(folder, "threads", rank).exists() for rank in range(WORLD)):
        time.sleep(0.02)
    build(folder, 3)


def one_fails(folder: Path) -> Any:
    """The host program raises on its last rank only, while the others go on."""
    world._MEETING_SECONDS = NEVER
    with build(folder, WORLD) as llama:
        for _ in llama.stream(["x"], temperature=0, max_gen_len=50):
            if RANK == WORLD - 1:
                (folder / "one_fails.failed").touch()
                raise ValueError("the host program's own mistake")


def _wait_long() -> None:
    """At the end of this rank, so that a hang shows. Over sockets only that end is seen by the others."""
    if compiled.base() is not None:
        world._MEETING_SECONDS = world._ERROR_SECONDS = NEVER


def one_exits(folder: Path) -> Any:
    """The same with sys.exit, which leaves no traceback for the end of the program to see."""
    _wait_long()
    llama = build(folder, WORLD)
    for _ in llama.stream(["x"], temperature=0, max_gen_len=50):
        if RANK == WORLD - 1:
            (folder / "one_exits.failed").touch()
            sys.exit("the host program's own mistake")


def one_refused(folder: Path) -> Any:
    """An error of this package on one rank only: its end waits for the others, which wait for its step."""
    _wait_long()
    llama = build(folder, WORLD)
    llama.text_completion(PROMPTS[:1], temperature=0, max_gen_len=3)
    if RANK == WORLD - 1:
        (folder / "one_refused.failed").touch()
    llama.text_completion(PROMPTS[:1], temperature=0 if RANK < WORLD - 1 else -1, max_gen_len=3)


def endless(folder: Path) -> Any:
    """Generate until stopped from outside. A rank that ends by itself, not killed, leaves a file."""
    world._MEETING_SECONDS = NEVER
    atexit.register((folder / f"ended.{RANK}").touch)
    begun = False
    with Llama.build(folder / "s2", None, 200_000, 1, device="cpu", dtype="float32") as llama:
        while True:
            for _ in llama.stream(["x"], temperature=1, max_gen_len=100_000, seed=0):
                if not begun:
                    _write(folder / f"pid.{RANK}", str(os.getpid()))
                    begun = True


def _result(folder: Path, scenario: str, rank: int) -> Path:
    return folder / f"out-{WORLD}" / f"{scenario}.{rank}.json"


def _write(path: Path, text: str) -> None:
    """Atomically: a rank may be killed, and another process may look, at any time."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text)
    unfinished.replace(path)


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        found = globals()[name](folder)
        path = _result(folder, name, RANK)
        path.parent.mkdir(exist_ok=True)
        _write(path, json.dumps(found))


if __name__ == "__main__":
    main()
