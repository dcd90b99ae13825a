"""Loading: time and peak memory of each rank, from 1, 2 and 4 shards onto 1, 2 and 4 ranks.

    python benchmarks/load.py                      makes a checkpoint of 2.2 GB (1.1B shape, bfloat16)
    python benchmarks/load.py --folder /data/CodeLlama-7b --ranks 1,2

Peak resident memory (VmHWM) counts from before `Llama.build` and is compared with the rank's own
weights: at most 1.15 times these plus 200 MB is the aim. Beside it transformers' from_pretrained of the
same weights from safetensors, and the time to read the shards' bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fire
import torch
from peers import SHAPES, TOKENIZER, make_ours, make_transformers

from llama import Llama
from llama.checkpoint.format import axis_of
from llama.model import ModelArgs

MIB = 1 << 20


def _status(key: str) -> int:
    """A memory line of this process, in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def worker(folder: str) -> None:
    """On each rank: build, and print one line of JSON from every rank."""
    before = _status("VmRSS")
    started = time.perf_counter()
    llama = Llama.build(folder, max_seq_len=256, max_batch_size=1)
    seconds = time.perf_counter() - started
    weights = sum(value.numel() * value.element_size() for value in llama.model.parameters())
    print(
        "RESULT",
        json.dumps({"s": seconds, "peak": _status("VmHWM") - before, "weights": weights}),
        flush=True,
    )
    llama.close()


def peer_worker(folder: str) -> None:
    """transformers' from_pretrained, likewise."""
    from transformers import AutoModelForCausalLM

    before = _status("VmRSS")
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    seconds = time.perf_counter() - started
    weights = sum(value.nbytes for value in model.parameters())
    print(
        "RESULT",
        json.dumps({"s": seconds, "peak": _status("VmHWM") - before, "weights": weights}),
        flush=True,
    )


def _run(flag: str, folder: Path, ranks: int) -> list[dict[str, float]]:
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    )
    command = [sys.executable, *launcher, __file__, f"--{flag}={folder}"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line.split("RESULT", 1)[1]) for line in out.splitlines() if "RESULT" in line]


def make_checkpoints(base: Path, args: ModelArgs, shard_counts: list[int]) -> None:
    """The same random weights in 1, 2, 4 shards, and as a Hugging Face folder."""
    ours = make_ours(args, torch.bfloat16, torch.device("cpu"))
    weights = ours.llama.model.state_dict()
    params = {
        "dim": args.dim,
        "n_layers": args.n_layers,
        "n_heads": args.n_heads,
        "n_kv_heads": args.kv_heads,
    }
    for count in shard_counts:
        folder = base / f"{count}-shards"
        folder.mkdir()
        params |= {"multiple_of": args.multiple_of, "norm_eps": args.norm_eps, "rope_theta": args.rope_theta}
        (folder / "params.json").write_text(json.dumps(params))
        shutil.copy(_wide_tokenizer(base), folder / "tokenizer.model")
        for i in range(count):
            shard = {}
            for name, value in weights.items():
                axis = axis_of(name)
                shard[name] = value if axis is None else value.chunk(count, axis)[i].clone()
            torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    make_transformers(ours.llama.model).model.save_pretrained(base / "hf")


def _wide_tokenizer(base: Path) -> Path:
    """The bundled tokenizer with filler pieces up to the family's vocabulary."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    path = base / "tokenizer.model"
    if not path.exists():
        model = proto.ModelProto()
        model.ParseFromString(TOKENIZER.read_bytes())
        for i in range(SHAPES["1.1b"].vocab_size - len(model.pieces)):
            model.pieces.add(piece=f"<filler{i}>", score=-1e6, type=proto.ModelProto.SentencePiece.UNUSED)
        path.write_bytes(model.SerializeToString())
    return path


def main(
    shape: str = "1.1b",
    folder: str | None = None,
    ranks: str = "1,2,4",
    rounds: int = 3,
    worker_of: str | None = None,
    peer_of: str | None = None,
) -> None:
    """Print one row for each pair of shards and ranks.

    Args:
        shape: of the checkpoint to make: 110m, 1.1b, 7b.
        folder: a checkpoint that is there already, instead.
        ranks: numbers of ranks, with commas.
        rounds: loads of each kind; the median time and the highest peak are shown.
        worker_of, peer_of: internal.
    """
    if worker_of is not None:
        return worker(worker_of)
    if peer_of is not None:
        return peer_worker(peer_of)
    counts = [int(each) for each in str(ranks).strip("()").split(",") if each.strip()]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        base = Path(temporary)
        folders = [Path(folder)] if folder else [base / f"{count}-shards" for count in (1, 2, 4)]
        if not folder:
            make_checkpoints(base, SHAPES[shape], [1, 2, 4])
        print(
            "| from | ranks | seconds | reading alone | weights/rank, MiB | peak/rank, MiB | allowed, MiB |"
        )
        print("|---|---|---|---|---|---|---|")
        for source in folders:
            for count in counts:
                _row(
                    source.name,
                    count,
                    _read_seconds(source),
                    [_run("worker_of", source, count) for _ in range(rounds)],
                )
        if not folder:
            _row(
                "transformers, safetensors",
                1,
                _read_seconds(base / "hf"),
                [_run("peer_of", base / "hf", 1) for _ in range(rounds)],
            )
    return None


def _row(name: str, ranks: int, reading: float, runs: list[list[dict[str, float]]]) -> None:
    slowest = sorted(max(each["s"] for each in run) for run in runs)
    peak = max(each["peak"] for run in runs for each in run)
    weights = runs[0][0]["weights"]
    allowed = 1.15 * weights + 200e6
    print(
        f"| {name} | {ranks} | {slowest[len(slowest) // 2]:.2f} | {reading:.2f} | {weights / MIB:.0f} |"
        f" {peak / MIB:.0f} | {allowed / MIB:.0f} |",
        flush=True,
    )


def _read_seconds(folder: Path) -> float:
    """Time to read the weight files once more, from the page cache where they fit."""
    started = time.perf_counter()
    buffer = bytearray(16 * MIB)
    for path in sorted([*folder.glob("*.pth"), *folder.glob("*.safetensors")]):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


if __name__ == "__main__":
    fire.Fire(main)
