"""Train CodeLlama-tiny from the running interpreter's own standard library, and write it in Meta's layout.

    python tools/train_tiny.py --minutes 62 --out CodeLlama-tiny

The time budget is processor time divided by threads, so a run that was stopped or shared the machine keeps
its schedule. SIGUSR1 begins the final decay at once. `--resume` continues from the last state in `--work`.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import platform
import shutil
import signal
import string
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# Threads that spin while they wait would use up the time budget. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import sentencepiece
import torch
from tiny_corpus import HELD_OUT, Corpus, read_corpus
from tiny_eval import Figures, bits_per_byte, evaluate
from tiny_model import TinyConfig, TinyLlama, parameter_groups
from tiny_samples import SampleStream, TinyTokenizer, train_tokenizer
from torch import Tensor
from torch.nn import functional as F

BATCH, LONG_BATCH, LONG_EVERY = (8, 512), (4, 1024), 8
WARM_UP_STEPS = 150
FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")


@dataclass
class Schedule:
    """Learning-rate scale: warm-up by steps, constant, then linear decay to zero by the run's clock, in minutes."""

    minutes: float
    decay_minutes: float
    decay_start: float = field(init=False)

    def __post_init__(self) -> None:
        self.decay_start = self.minutes - self.decay_minutes

    def decay_now(self, minute: float) -> None:
        self.decay_start = min(self.decay_start, minute)

    def scale(self, step: int, minute: float) -> float:
        decayed = (minute - self.decay_start) / self.decay_minutes
        return max(0.0, min((step + 1) / WARM_UP_STEPS, 1 - decayed, 1.0))

    def is_over(self, minute: float) -> bool:
        return minute >= self.decay_start + self.decay_minutes


@dataclass
class Run:
    """What a resumed run needs besides the corpus."""

    model: TinyLlama
    optimizer: torch.optim.Optimizer
    stream: SampleStream
    schedule: Schedule
    step: int = 0
    tokens: int = 0
    minutes_before: float = 0.0

    def minute(self) -> float:
        return self.minutes_before + (time.process_time() - self.started) / 60 / torch.get_num_threads()

    def __post_init__(self) -> None:
        self.started = time.process_time()

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state(),
            "counters": {"step": self.step, "tokens": self.tokens, "minutes_before": self.minute()},
            "decay_start": self.schedule.decay_start,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state(state["stream"])
        vars(self).update(state["counters"])
        self.schedule.decay_now(state["decay_start"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=62.0, help="processor time per thread for training")
    parser.add_argument(
        "--decay-minutes", type=float, help="length of the final decay; default a fifth of --minutes"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("CodeLlama-tiny"), help="folder to write or to measure"
    )
    parser.add_argument("--work", type=Path, help="folder for resumable states; default a new temporary one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--infill-samples", type=int, default=400)
    parser.add_argument("--resume", action="store_true", help="continue from the state in --work")
    parser.add_argument("--eval-only", action="store_true", help="measure --out and print its figures")
    arguments = parser.parse_args()
    if arguments.decay_minutes is None:
        arguments.decay_minutes = arguments.minutes / 5
    if not 0 < arguments.decay_minutes <= arguments.minutes:
        parser.error(f"--decay-minutes must be in (0, {arguments.minutes}], not {arguments.decay_minutes}")
    if arguments.resume and arguments.work is None:
        parser.error("--resume needs --work, the folder of the run to continue")
    return arguments


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: faulting them in again took a fifth of a step in one trial."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def loss_of(model: TinyLlama, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def prepare_tokenizer(corpus: Corpus, work: Path, threads: int, resume: bool) -> TinyTokenizer:
    """Train and check the tokenizer, or take the resumed run's."""
    path = work / "tokenizer.model"
    if resume:
        return TinyTokenizer(path.read_bytes())
    tokenizer = TinyTokenizer(train_tokenizer(corpus.library, threads))
    for document in corpus.library + corpus.tests + corpus.held_out:
        text = document.text
        if tokenizer.decode(tokenizer.sp(text)) != text or tokenizer.decode_bare(tokenizer.sp0(text)) != text:
            raise RuntimeError(f"{document.name} does not survive the tokenizer")
    path.write_bytes(tokenizer.proto)
    return tokenizer


def prepare(corpus: Corpus, arguments: argparse.Namespace) -> Run:
    """Make a new run, or load the last state of an old one."""
    torch.manual_seed(arguments.seed)
    tokenizer = prepare_tokenizer(corpus, arguments.work, arguments.threads, arguments.resume)
    stream = SampleStream(corpus, tokenizer, arguments.seed)
    log(f"{len(stream.functions)} functions for [INST], {stream.chars_per_token:.2f} characters per token")
    model = TinyLlama(TinyConfig(), tokenizer.vocab_size)
    model.init_weights()
    groups = parameter_groups(model, weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95), fused=True)
    run = Run(model, optimizer, stream, Schedule(arguments.minutes, arguments.decay_minutes))
    if arguments.resume:
        run.load_state(torch.load(arguments.work / "state.pt", weights_only=True))
    return run


def save_state(run: Run, work: Path) -> None:
    torch.save(run.state(), work / "state.part")
    os.replace(work / "state.part", work / "state.pt")


def train(run: Run, corpus: Corpus, arguments: argparse.Namespace) -> None:
    """Train until the schedule is over. The state on disk is then that of the finished model."""

    def begin_decay(_signal: int, _frame: FrameType | None) -> None:
        run.schedule.decay_now(run.minute())

    signal.signal(signal.SIGUSR1, begin_decay)
    few = sorted(corpus.held_out, key=lambda document: len(document.text))[:5]
    recent: list[float] = []
    saved = run.minute()
    while not run.schedule.is_over(minute := run.minute()):
        for group in run.optimizer.param_groups:
            group["lr"] = arguments.learning_rate * run.schedule.scale(run.step, minute)
        ids = run.stream.batch(*(LONG_BATCH if run.step % LONG_EVERY == LONG_EVERY - 1 else BATCH))
        loss = loss_of(run.model, ids)
        run.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.step, run.tokens = run.step + 1, run.tokens + ids.numel() - len(ids)
        recent.append(loss.item())
        if run.step % 50 == 0:
            rate = run.optimizer.param_groups[0]["lr"]
            mean = sum(recent) / len(recent)
            log(
                f"step {run.step} loss {mean:.4f} lr {rate:.2e} minute {run.minute():.2f} tokens {run.tokens}"
            )
            recent.clear()
        if run.step % 500 == 0:
            held_out = bits_per_byte(run.model, run.stream.tokenizer, few)
            log(f"held-out bits per byte, {len(few)} short modules: {held_out:.4f}")
        if run.minute() - saved > 3:
            save_state(run, arguments.work)
            saved = run.minute()
    save_state(run, arguments.work)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_checkpoint(run: Run, folder: Path) -> None:
    """Write Meta's four files. The checksums are those of the files read back."""
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in run.model.state_dict().items()}
    torch.save(weights, folder / FILES[0])
    (folder / FILES[1]).write_text(json.dumps(run.model.config.params_json(), indent=2) + "\n")
    (folder / FILES[2]).write_bytes(run.stream.tokenizer.proto)
    (folder / "checklist.chk").write_text("".join(f"{md5(folder / name)}  {name}\n" for name in FILES))


def verify(folder: Path) -> None:
    for line in (folder / "checklist.chk").read_text().splitlines():
        digest, name = line.split()
        if md5(folder / name) != digest:
            raise RuntimeError(f"{folder / name} does not have the checksum {digest}")


def card(run: Run, corpus: Corpus, figures: Figures, arguments: argparse.Namespace) -> str:
    """The model card: the template, filled with the figures."""
    config = run.model.config
    command = f"python tools/train_tiny.py --minutes {arguments.minutes:g} --seed {arguments.seed}"
    shares = ("infill_exact_psm", "infill_exact_spm", "bodies_that_parse")
    shown = {key: f"{value:.1%}" if key in shares else f"{value:.4g}" for key, value in figures.items()}
    return string.Template((Path(__file__).parent / "tiny_card.md").read_text()).substitute(
        shown,
        parameters=f"{sum(p.numel() for p in run.model.parameters()):,}",
        **config.params_json() | {"vocab_size": run.stream.tokenizer.vocab_size},
        ffn_hidden=config.ffn_hidden,
        context=run.model.context,
        command=command,
        held_out=", ".join(f"`{module}`" for module in HELD_OUT),
        python=platform.python_version(),
        torch=torch.__version__,
        sentencepiece=sentencepiece.__version__,
        threads=arguments.threads,
        minutes=f"{run.minutes_before:.1f}",
        seed=arguments.seed,
        library_files=len(corpus.library),
        library_megabytes=f"{sum(len(d.text) for d in corpus.library) / 1e6:.1f}",
        test_files=len(corpus.tests),
        dropped=", ".join(f"`{name}`" for name in corpus.dropped) or "none",
        steps=f"{run.step:,}",
        tokens=f"{run.tokens:,}",
        batch=f"{BATCH[0]} × {BATCH[1]}, every {LONG_EVERY}th {LONG_BATCH[0]} × {LONG_BATCH[1]}",
        learning_rate=arguments.learning_rate,
    )


def publish(run: Run, corpus: Corpus, arguments: argparse.Namespace) -> None:
    """Write, verify and measure in a folder beside the target, then put it in the target's place."""
    target: Path = arguments.out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    run.minutes_before = run.minute()
    write_checkpoint(run, fresh)
    verify(fresh)
    figures = evaluate(fresh, corpus, arguments.infill_samples)
    log(json.dumps(figures, indent=2))
    (fresh / "MODEL_CARD.md").write_text(card(run, corpus, figures, arguments))
    fresh.chmod(0o755)  # mkdtemp makes it private
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(fresh, target)
        shutil.rmtree(old)
    else:
        os.rename(fresh, target)
    log(f"wrote {target}")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    corpus = read_corpus()
    log(f"library {len(corpus.library)}, tests {len(corpus.tests)}, held out {len(corpus.held_out)} files")
    log(f"dropped, because they share lines with held-out text: {', '.join(corpus.dropped) or 'none'}")
    if arguments.eval_only:
        verify(arguments.out)
        log(json.dumps(evaluate(arguments.out, corpus, arguments.infill_samples), indent=2))
        return
    arguments.work = arguments.work or Path(tempfile.mkdtemp(prefix="train-tiny-"))
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = prepare(corpus, arguments)
    log(f"pid {os.getpid()}, states in {arguments.work}")
    train(run, corpus, arguments)
    publish(run, corpus, arguments)


if __name__ == "__main__":
    main()
