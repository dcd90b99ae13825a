"""The HTTP server under load: what it costs beside the bare AsyncEngine, and beside other servers.

    python benchmarks/load_server.py throughput                  tokens/s of 1, 8, 32, 64 streams, 110m
    python benchmarks/load_server.py first_token                 what HTTP adds to the time to the first token
    python benchmarks/load_server.py events                      CPU time of an event, with a model that takes none
    python benchmarks/load_server.py peers --llama_server PATH   beside llama.cpp's own server, on the same weights

Clients run in a process of their own (http_load.py). The model has one core less than the machine, for both:
with all of them, its threads wait for one another whenever the server or a client runs. OMP_NUM_THREADS says
otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# Before torch is loaded: the engine's thread takes its number of threads from here.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))

import fire
import torch
from engine_overhead import NullModel
from engine_runs import GREEDY, make_request, percentile
from http_load import Seen, load
from peers import SHAPES, TOKENIZER, make_ours, parts, random_prompts, spread

from llama.engine import Engine, Request
from llama.generation import Llama
from llama.serving import AsyncEngine, serve
from llama.serving.http.server import serve_http
from llama.serving.http.service import Service
from llama.serving.http.settings import Settings
from llama.tokenizer import Tokenizer

_PATH = "/v1/completions"
_THREAD = "http-server"


@contextlib.contextmanager
def served(llama: Llama, **settings: Any) -> Iterator[tuple[int, Service]]:
    """Serve in a thread -> the port, and the service."""
    given = Settings(**{"model_name": "benchmark", "port": 0, "max_queue": 10_000, **settings})
    found: list[tuple[int, Service]] = []
    loops: list[Any] = []
    up = threading.Event()

    def ready(service: Service, address: str) -> None:
        found.append((int(address.rpartition(":")[2]), service))
        up.set()

    async def main() -> None:
        loops.append((asyncio.get_running_loop(), asyncio.current_task()))
        with contextlib.suppress(asyncio.CancelledError):
            await serve_http(llama, given, ready=ready)

    def run() -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, name=_THREAD)
    thread.start()
    up.wait()
    try:
        yield found[0]
    finally:
        loop, task = loops[0]
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


def _bare(llama: Llama, requests: Sequence[Request]) -> list[float]:
    """The same requests on the AsyncEngine -> seconds to the first delta of each, and to the end of all."""

    async def read(engine: AsyncEngine, request: Request, started: float, first: list[float]) -> None:
        seen = False
        async for _ in engine.batches(request):
            if not seen:
                first.append(time.perf_counter() - started)
                seen = True

    async def main(engine: AsyncEngine) -> list[float]:
        started, first = time.perf_counter(), []
        await asyncio.gather(*(read(engine, each, started, first) for each in requests))
        return [*first, time.perf_counter() - started]

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(serve(llama.engine, main))
    assert found is not None
    return found


def _model(shape: str, dtype: str, streams: int) -> Llama:
    args = replace(SHAPES[shape], max_batch_size=streams)
    llama = make_ours(args, getattr(torch, dtype), torch.device("cpu")).llama
    # No drafts: the output of random weights repeats itself, so they would be right more often than for text.
    llama.engine = Engine(llama.model, llama.tokenizer, prefix_reuse=False, speculate=False)
    return llama


def _body(prompt: list[int], new: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True, "ignore_eos": True}


def _check(seen: Sequence[Seen]) -> None:
    bad = [each for each in seen if each.status != 200 or "[DONE]" not in each.last]
    if bad:
        raise SystemExit(f"{len(bad)} streams failed: {bad[0]}")


def throughput(
    shape: str = "110m",
    dtype: str = "bfloat16",
    streams: Any = (1, 8, 32, 64),
    new: int = 64,
    rounds: int = 5,
) -> None:
    """Tokens/s over HTTP against the bare AsyncEngine, in turn, on the same model."""
    counts = [int(each) for each in parts(streams)]
    llama = _model(shape, dtype, max(counts))
    print(f"{shape}, {dtype}, {torch.get_num_threads()} thread(s), {new} new tokens a stream")
    for count in counts:
        prompts = random_prompts([32] * count)
        requests = [make_request(prompt, new, GREEDY, speculate=False) for prompt in prompts]
        ratios, rates = [], []
        for i in range(rounds + 1):
            bare = _bare(llama, requests)[-1]
            with served(llama) as (port, _):
                seen = load("127.0.0.1", port, _PATH, [{**_body(prompt, new)} for prompt in prompts])
            _check(seen)
            http = max(each.end for each in seen)
            if i:
                ratios.append(bare / http)
                rates.append(count * new / http)
        print(
            f"{count:3} streams: {statistics.median(rates):7.0f} tokens/s, {spread(ratios, 3)} the bare engine's"
        )


def first_token(shape: str = "110m", dtype: str = "bfloat16", requests: int = 60) -> None:
    """What HTTP adds to the time to the first token of a lone request."""
    llama = _model(shape, dtype, 8)
    added, bare_times = [], []
    with contextlib.ExitStack() as stack:
        prompts = random_prompts([32] * requests)
        for prompt in prompts:
            bare_times.append(_bare(llama, [make_request(prompt, 1, GREEDY, speculate=False)])[0])
        port, _ = stack.enter_context(served(llama))
        load("127.0.0.1", port, _PATH, [_body(prompts[0], 1)])
        http_times = [load("127.0.0.1", port, _PATH, [_body(prompt, 1)])[0].first for prompt in prompts]
    base = statistics.median(bare_times)
    added = [1e3 * (each - base) for each in http_times]
    print(f"bare engine: {1e3 * base:.1f} ms (median of {requests})")
    print(f"added by HTTP: p50 {percentile(added, 0.5):.1f} ms, p99 {percentile(added, 0.99):.1f} ms")


def events(streams: Any = (1, 8, 32), new: int = 300, rounds: int = 3) -> None:
    """CPU time of an event in the server's thread, from the engine's delta to the socket; with a model of no cost.

    Reading, checking and answering the requests themselves is in it too.
    """
    torch.set_num_threads(1)
    tokenizer = Tokenizer(TOKENIZER)
    llama = Llama(NullModel(tokenizer.n_words, tokenizer.n_words), tokenizer, prefix_reuse=False)
    for count in (int(each) for each in parts(streams)):
        prompts = random_prompts([8] * count, high=tokenizer.n_words)
        costs, joined = [], []
        for i in range(rounds + 1):
            with served(llama) as (port, _):
                (thread,) = (each for each in threading.enumerate() if each.name == _THREAD)
                clock = time.pthread_getcpuclockid(thread.ident or 0)
                started = time.clock_gettime(clock)
                seen = load("127.0.0.1", port, _PATH, [_body(prompt, new) for prompt in prompts])
                taken = time.clock_gettime(clock) - started
            _check(seen)
            found = sum(each.events for each in seen)
            if i:
                costs.append(1e6 * taken / found)
                joined.append(count * new / found)
        cost = f"{statistics.median(costs):6.0f} us an event ({min(costs):.0f} to {max(costs):.0f})"
        print(f"{count:3} streams: {cost}, {statistics.median(joined):.2f} tokens an event")


@contextlib.contextmanager
def _llama_server(program: str, llama: Llama, streams: int, threads: int) -> Iterator[int]:
    """llama.cpp's own server on the same weights -> its port."""
    from gguf_export import export
    from transformers_peer import plain_weights

    with tempfile.TemporaryDirectory() as folder, socket.socket() as found:
        export(llama.model.params, plain_weights(llama.model), Path(folder) / "model.gguf")
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        command = [program, "-m", f"{folder}/model.gguf", "--port", str(port), "-np", str(streams)]
        command += [
            "-c",
            str(512 * streams),
            "-t",
            str(threads),
            "-tb",
            str(threads),
            "-b",
            "512",
            "-ub",
            "512",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError):
                    if urllib.request.urlopen(f"http://127.0.0.1:{port}/health").status == 200:
                        break
                if process.poll() is not None:
                    raise SystemExit(f"{program} ended with code {process.returncode}")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait()


def peers(
    llama_server: str,
    shape: str = "110m",
    dtype: str = "bfloat16",
    streams: Any = (1, 8, 32),
    new: int = 64,
    prompt: int = 32,
    rounds: int = 5,
) -> None:
    """Tokens/s and time to the first token against llama.cpp's server, in turn, on the same weights.

    Args:
        llama_server: the program; llama-cpp-python's sdist holds its sources.
    """
    counts = [int(each) for each in parts(streams)]
    llama = _model(shape, dtype, max(counts))
    threads = torch.get_num_threads()
    print(f"{shape}, {dtype}, {threads} thread(s), prompts of {prompt}, {new} new tokens a stream")
    with served(llama) as (ours, _), _llama_server(llama_server, llama, max(counts), threads) as theirs:
        for count in counts:
            rates: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
            firsts: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
            for i in range(rounds + 1):
                prompts = random_prompts([prompt] * count, seed=i)
                mine = load("127.0.0.1", ours, _PATH, [_body(each, new) for each in prompts])
                _check(mine)
                bodies = [
                    {"prompt": each, "n_predict": new, "temperature": 0, "stream": True, "ignore_eos": True}
                    for each in prompts
                ]
                other = load("127.0.0.1", theirs, "/completion", bodies)
                if any(each.status != 200 or f'"predicted_n":{new},' not in each.last for each in other):
                    raise SystemExit(f"llama.cpp's answer is not what was asked for: {other[0]}")
                if i:
                    for name, seen in (("ours", mine), ("llama.cpp", other)):
                        rates[name].append(count * new / max(each.end for each in seen))
                        firsts[name].append(statistics.median(each.first for each in seen))
            ratio = [a / b for a, b in zip(rates["ours"], rates["llama.cpp"], strict=True)]
            cells = [f"{name} {statistics.median(each):6.0f} tokens/s" for name, each in rates.items()]
            cells += [
                f"first token {name} {1e3 * statistics.median(each):5.0f} ms" for name, each in firsts.items()
            ]
            print(f"{count:3} streams: {spread(ratio)}; " + ", ".join(cells))


if __name__ == "__main__":
    fire.Fire({"throughput": throughput, "first_token": first_token, "events": events, "peers": peers})
