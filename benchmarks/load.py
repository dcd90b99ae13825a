"""Loading and converting: time and peak memory, from 1, 2 and 4 shards onto 1, 2 and 4 ranks.

    python benchmarks/load.py                      makes a checkpoint of 4.1 GB (2.1B parameters, bfloat16)
    python benchmarks/load.py --shape 110m --ranks 1 --rounds 1
    python benchmarks/load.py --folder /data/CodeLlama-7b --ranks 1,2
    python benchmarks/load.py --gguf Q8_0,Q4_K_M   files of 2.3 and 1.3 GB instead, beside llama.cpp without mmap

Every figure stands beside a yardstick that takes turns with it in the same run; medians of the rounds.

Loading is `Llama.build`. Its yardsticks read the same bytes from the page cache, once into new memory (the
least that a loader must do) and once through a small buffer. With 1 rank the time to the first token is
measured too, beside transformers: its from_pretrained maps the file, and reads the weights when they are
first used. Peak memory is the growth of resident memory, on the rank where it is highest; the aim is 1.15 x
its weights + 200 MB. Converting stands beside `cp` of the same files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fire
import torch
from peers import TOKENIZER, parts, spread

from llama import Llama
from llama.checkpoint.layouts.hf_config import params_of
from llama.model import ModelArgs
from llama.sizing.shapes import expected_shapes

MIB = 1 << 20
_COMMON = {"vocab_size": 32016, "rope_theta": 1e6, "n_kv_heads": 4, "ffn_dim_multiplier": 1.0}
SHAPES = {
    "110m": ModelArgs(dim=768, n_layers=12, n_heads=12, vocab_size=32016, rope_theta=1e6),
    "1.1b": ModelArgs(dim=2048, n_layers=22, n_heads=32, **_COMMON),
    "2.1b": ModelArgs(dim=2048, n_layers=44, n_heads=32, **_COMMON),
}


def _status(key: str) -> int:
    """A memory line of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def _tell(**figures: float) -> None:
    # One write: the ranks share their standard output.
    os.write(1, f"RESULT {json.dumps(figures)}\n".encode())


def load_worker(path: str, tokenizer: str | None = None) -> None:
    """On each rank: build, then one token."""
    before = _status("VmRSS")
    started = time.perf_counter()
    llama = Llama.build(path, tokenizer, max_seq_len=256, max_batch_size=1)
    seconds = time.perf_counter() - started
    peak = _status("VmHWM") - before
    llama.generate([[1, 300, 301]], 1, temperature=0.0)
    first = time.perf_counter() - started
    packed = {id(module): module.packed for module in llama.model.modules() if hasattr(module, "packed")}
    counted = {weight.codes.data_ptr() for weight in packed.values()}
    weights = sum(weight.nbytes for weight in packed.values())  # with scales, which are no parameters
    weights += sum(value.nbytes for value in llama.model.parameters() if value.data_ptr() not in counted)
    _tell(s=seconds, first=first, peak=peak, peak_first=_status("VmHWM") - before, weights=weights)
    llama.close()


def peer_worker(path: str) -> None:
    """The same with transformers' from_pretrained."""
    from transformers import AutoModelForCausalLM

    before = _status("VmRSS")
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    seconds = time.perf_counter() - started
    peak = _status("VmHWM") - before
    with torch.inference_mode():
        model(torch.tensor([[1, 300, 301]]))
    first = time.perf_counter() - started
    weights = sum(value.nbytes for value in model.parameters())
    _tell(s=seconds, first=first, peak=peak, peak_first=_status("VmHWM") - before, weights=weights)


def llama_cpp_worker(path: str) -> None:
    """The same with llama.cpp, which reads the file into memory of its own, and repacks it for this CPU."""
    from gguf_export import library, without_mapping

    lc = library()
    before = _status("VmRSS")
    started = time.perf_counter()
    parameters = lc.llama_model_default_params()
    without_mapping(parameters)
    model = lc.llama_model_load_from_file(path.encode(), parameters)
    seconds = time.perf_counter() - started
    _tell(s=seconds, peak=_status("VmHWM") - before, weights=lc.llama_model_size(model))


def convert_worker(source: str, target: str, to: str, mp: int | None = None) -> None:
    """`codellama convert`, in this process."""
    import llama.checkpoint.convert  # noqa: F401 - so that the import is not measured
    from llama.cli import main as cli

    before = _status("VmRSS")
    started = time.perf_counter()
    code = cli(["convert", source, target, "--to", to, *(["--mp", str(mp)] if mp else [])])
    _tell(s=time.perf_counter() - started, peak=_status("VmHWM") - before, code=code)


def read_worker(path: str, fresh: bool) -> None:
    """Read the weight files into new memory (`fresh`), or through a buffer of 16 MB."""
    files = sorted([*Path(path).glob("*.pth"), *Path(path).glob("*.safetensors")]) or [Path(path)]
    buffer = memoryview(bytearray(16 * MIB))
    started = time.perf_counter()
    kept = []
    for each in files:
        with each.open("rb", buffering=0) as file:
            if fresh:
                whole = torch.empty(each.stat().st_size, dtype=torch.uint8)
                kept.append(whole)
                rest = memoryview(whole.numpy())
                while taken := file.readinto(rest):
                    rest = rest[taken:]
            else:
                while file.readinto(buffer):
                    pass
    _tell(s=time.perf_counter() - started)


WORKERS: dict[str, Callable[..., None]] = {
    "load": load_worker,
    "peer": peer_worker,
    "llama.cpp": llama_cpp_worker,
    "convert": convert_worker,
    "read": read_worker,
}


def _run(worker: str, ranks: int = 1, **flags: object) -> list[dict[str, float]]:
    """Run a worker in processes of its own -> what each rank tells."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    )
    words = [f"--{key}={value}" for key, value in flags.items() if value is not None]
    command = [sys.executable, *launcher, __file__, "worker", worker, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return [json.loads(each) for each in re.findall(r"RESULT (\{.*?\})", done.stdout)]


def make_checkpoint(folder: Path, args: ModelArgs) -> None:
    """Random weights in one shard."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in expected_shapes(args).items():
        weight = torch.empty(shape, dtype=torch.bfloat16)
        weights[name] = weight.normal_(0, 0.02, generator=generator) if len(shape) > 1 else weight.fill_(1)
    torch.save(weights, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(params_of(args)))
    _wide_tokenizer(folder / "tokenizer.model", args.vocab_size)


def _wide_tokenizer(path: Path, size: int) -> None:
    """The bundled tokenizer with filler pieces up to the family's vocabulary."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(TOKENIZER.read_bytes())
    for i in range(size - len(model.pieces)):
        model.pieces.add(piece=f"<filler{i}>", score=-1e6, type=proto.ModelProto.SentencePiece.UNUSED)
    path.write_bytes(model.SerializeToString())


def main(
    shape: str = "2.1b",
    folder: str | None = None,
    ranks: str = "1,2,4",
    rounds: int = 3,
    gguf: str = "",
) -> None:
    """Print tables in Markdown.

    Args:
        shape: of the checkpoint to make: 110m, 1.1b or 2.1b.
        folder: an existing checkpoint to use instead.
        ranks: numbers of ranks, with commas.
        rounds: turns of each measurement.
        gguf: only load GGUF files of these types (see gguf_export.py), with commas, beside llama.cpp.
    """
    counts = [int(each) for each in str(ranks).strip("()").split(",") if each.strip()]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        base = Path(temporary)
        if gguf:
            _ggufs(base, SHAPES[shape], parts(gguf), rounds)
            return
        if folder:
            sources = [Path(folder)]
        else:
            make_checkpoint(base / "1-shards", SHAPES[shape])
            sources = [base / "1-shards", base / "2-shards", base / "4-shards"]
            _conversions(base, 2 * SHAPES[shape].vocab_size * SHAPES[shape].dim, rounds)
        _loads(sources, counts, rounds)
        if not folder:
            _beside_peer(sources[0], base / "hf", rounds)


def _conversions(base: Path, largest: int, rounds: int) -> None:
    """Print the table of converting. The bytes of the largest tensor bound the memory allowed."""
    print(
        "\n| convert | GB/s | cp, GB/s | of cp, median (range) | peak, MiB | allowed, MiB |\n"
        "|---|---|---|---|---|---|"
    )
    source = base / "1-shards"
    for name, to, mp in (("2-shards", "meta", 2), ("4-shards", "meta", 4), ("hf", "hf", None)):
        speeds, copies, peak = [], [], 0.0
        for _ in range(rounds):
            for path in (base / name, base / "copy"):
                shutil.rmtree(path, ignore_errors=True)
            size = sum(path.stat().st_size for path in source.glob("*.pth")) / 1e9
            [figures] = _run("convert", source=source, target=base / name, to=to, mp=mp)
            assert figures["code"] == 0
            started = time.perf_counter()
            subprocess.run(["cp", "-r", base / name, base / "copy"], check=True)
            copies.append(size / (time.perf_counter() - started))
            speeds.append(size / figures["s"])
            peak = max(peak, figures["peak"])
        shutil.rmtree(base / "copy")
        ratios = [a / b for a, b in zip(speeds, copies, strict=True)]
        print(
            f"| 1 shard to {name} | {statistics.median(speeds):.2f} | {statistics.median(copies):.2f} |"
            f" {spread(ratios)} | {peak / MIB:.0f} |"
            f" {(3 * largest + 300e6) / MIB:.0f} |",
            flush=True,
        )


def _loads(sources: list[Path], counts: list[int], rounds: int) -> None:
    print(
        "\n| from | ranks | seconds | of reading into memory, median (range) | of reading through a buffer |"
        " weights/rank, MiB | peak/rank, MiB | allowed, MiB |\n|---|---|---|---|---|---|---|---|"
    )
    for source in sources:
        for count in counts:
            loads, fresh, small, peak, weights = [], [], [], 0.0, 0.0
            for _ in range(rounds):
                figures = _run("load", count, path=source)
                loads.append(max(each["s"] for each in figures))
                peak = max(peak, *(each["peak"] for each in figures))
                weights = figures[0]["weights"]
                fresh.append(_run("read", path=source, fresh=True)[0]["s"])
                small.append(_run("read", path=source, fresh=False)[0]["s"])
            to_memory = [a / b for a, b in zip(loads, fresh, strict=True)]
            through = statistics.median(a / b for a, b in zip(loads, small, strict=True))
            print(
                f"| {source.name} | {count} | {statistics.median(loads):.2f} | {spread(to_memory)} |"
                f" {through:.2f} x | {weights / MIB:.0f} |"
                f" {peak / MIB:.0f} | {(1.15 * weights + 200e6) / MIB:.0f} |",
                flush=True,
            )


def _ggufs(base: Path, args: ModelArgs, kinds: list[str], rounds: int) -> None:
    from gguf_export import export, quantize

    generator = torch.Generator().manual_seed(0)
    weights = (
        (name, torch.empty(size).normal_(0, 0.02, generator=generator) if len(size) > 1 else torch.ones(size))
        for name, size in expected_shapes(args).items()
    )
    export(args, ((name, weight.half()) for name, weight in weights), base / "F16.gguf")
    _wide_tokenizer(base / "tokenizer.model", args.vocab_size)
    print(
        "\n| file | MiB | ours, s | llama.cpp, s | of llama.cpp, median (range) | of reading into memory |"
        " ours: weights, MiB | peak, MiB | llama.cpp: peak, MiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    for kind in kinds:
        file = base / f"{kind}.gguf"
        if kind != "F16":
            quantize(base / "F16.gguf", file, kind)
        runs: dict[str, list[dict[str, float]]] = {"load": [], "llama.cpp": [], "read": []}
        for _ in range(rounds):
            runs["load"] += _run("load", path=file, tokenizer=base / "tokenizer.model")
            runs["llama.cpp"] += _run("llama.cpp", path=file)
            runs["read"] += _run("read", path=file, fresh=True)
        mine, theirs, read = ([each["s"] for each in run] for run in runs.values())
        peaks = [max(each["peak"] for each in runs[name]) / MIB for name in ("load", "llama.cpp")]
        print(
            f"| {kind} | {file.stat().st_size / MIB:.0f} | {statistics.median(mine):.2f} |"
            f" {statistics.median(theirs):.2f} | {spread([a / b for a, b in zip(mine, theirs, strict=True)])} |"
            f" {statistics.median(a / b for a, b in zip(mine, read, strict=True)):.2f} x |"
            f" {runs['load'][0]['weights'] / MIB:.0f} | {peaks[0]:.0f} | {peaks[1]:.0f} |",
            flush=True,
        )


def _beside_peer(meta: Path, hf: Path, rounds: int) -> None:
    print(
        "\n| | load, s | to the first token, s | peak after loading, MiB |"
        " peak after the first token, MiB |\n"
        "|---|---|---|---|---|"
    )
    rows = {
        "ours, Meta": ("load", meta),
        "ours, Hugging Face": ("load", hf),
        "transformers": ("peer", hf),
    }
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, (worker, folder) in rows.items():
            taken[name] += _run(worker, path=folder)
    for name, runs in taken.items():
        load, first = (statistics.median(run[key] for run in runs) for key in ("s", "first"))
        peaks = [max(run[key] for run in runs) / MIB for key in ("peak", "peak_first")]
        print(f"| {name} | {load:.2f} | {first:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        fire.Fire(WORKERS, command=sys.argv[2:])
    else:
        fire.Fire(main)
