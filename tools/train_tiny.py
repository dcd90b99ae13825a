"""Make CodeLlama-tiny from the running interpreter's own library and packages, in Meta's layout.

    python tools/train_tiny.py prepare --data data                    # once, on a CPU, minutes
    python tools/train_tiny.py train --data data --work run --minutes 300
    python tools/train_tiny.py publish --work run --out CodeLlama-tiny
    python tools/train_tiny.py measure --out CodeLlama-tiny

Training saves its state every few minutes and on SIGTERM, and goes on with `train --work run --resume`.
`--resume --minutes 400` changes the budget, `--resume --finish 20` ends in twenty minutes with the mix and the
decay; so does a running one when a file `finish` in its folder holds the number 20.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import FrameType

# Threads that spin while they wait would use up the time budget. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tiny_loops import MINUTES as LOOP_MINUTES
from tiny_loops import TEXTS, Loops
from tiny_model import TinyConfig
from tiny_plan import Plan
from tiny_run import Run, Settings, describe

LOG_STEPS, SAVE_MINUTES, HELD_OUT_MINUTES = 50, 3.0, 6.0
# Settings that the command line names alike. Data and shapes are the others.
OPTIONS = [each.name for each in fields(Settings) if each.name not in ("data", "config")]
LONG, MIX, DECAY = 0.4, 2 / 3, 0.8  # shares of the budget at which these begin


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: faulting them in again took a fifth of a step in one trial."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def open_run(arguments: argparse.Namespace) -> Run:
    """A new run, or that of the state in the work folder with what the arguments change of its plan."""
    state = arguments.work / "state.pt"
    plan = Plan.of(arguments.minutes or 300, arguments.long, arguments.mix, arguments.decay)
    if not arguments.resume:
        if state.exists():
            raise SystemExit(f"{state} is there: --resume goes on with it, another --work starts anew")
        config = TinyConfig(dim=arguments.dim, n_layers=arguments.layers)
        settings = Settings(
            str(arguments.data), config, **{name: getattr(arguments, name) for name in OPTIONS}
        )
        return Run(settings, plan, arguments.device)
    run = Run.load(state, arguments.device, arguments.data)
    if arguments.minutes is not None:
        run.plan = plan
    if arguments.finish is not None:
        run.plan.finish(run.minute(), arguments.finish)
    return run


def asked_to_finish(work: Path) -> float | None:
    """The minutes in the file `finish`, which is taken away."""
    try:
        text = (work / "finish").read_text()
        (work / "finish").unlink()
        return float(text)
    except FileNotFoundError:
        return None
    except ValueError:
        log(f"the file finish holds no number of minutes: {text!r}")
        return None


class Stop:
    """Whether SIGTERM or SIGINT came."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True


def train(run: Run, work: Path) -> None:
    """Train until the plan is over or a signal comes; then the state on the disk is the last one."""
    stop, recent = Stop(), []
    loops = Loops(run.files, run.settings.seed)
    saved = measured = run.minute()
    wrote = -math.inf
    while (phase := run.plan.phase(run.minute())) != "over" and not stop.asked:
        if phase == "mix" and run.tokens["mix"] == 0:
            run.save(work / "plain.pt")  # shorter or longer second phases can be branched off it
            log("the mix begins")
        if phase == "mix" and run.minute() - wrote > LOOP_MINUTES and run.settings.loop_weight:
            share = loops.write(run.write_checkpoint)
            log(f"of {TEXTS} texts of its own {share:.1%} have loops")
            wrote = run.minute()
        recent.append(run.advance(loops.rows()))
        if run.step % LOG_STEPS == 0:
            loss, norm = (sum(each) / len(recent) for each in zip(*recent, strict=True))
            scale = run.plan.scale(run.step, run.minute())
            spent = f"minute {run.minute():.2f} of {run.plan.end_at:.0f}, tokens {sum(run.tokens.values()):,}"
            log(f"step {run.step} {phase} loss {loss:.4f} norm {norm:.2f} rate x{scale:.3f} {spent}")
            recent.clear()
            if not math.isfinite(loss):
                raise SystemExit("the loss is not finite; the state on the disk is from before")
            if (minutes := asked_to_finish(work)) is not None:
                run.plan.finish(run.minute(), minutes)
        if run.minute() - saved > SAVE_MINUTES:
            run.save(work / "state.pt")
            saved = run.minute()
        if run.minute() - measured > HELD_OUT_MINUTES:
            log_held_out(run)
            measured = run.minute()
    run.save(work / "state.pt")
    if not stop.asked:  # who stops it waits
        log_held_out(run)
    log("stopped" if stop.asked else "over")


def log_held_out(run: Run) -> None:
    bits = [run.held_out_bits(name) for name in ("held_out", "held_out_package")]
    log(f"held-out bits per byte: modules {bits[0]:.4f}, package {bits[1]:.4f}")


def command_train(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    arguments.work.mkdir(parents=True, exist_ok=True)
    run = open_run(arguments)
    log(
        f"pid {os.getpid()}, {sum(p.numel() for p in run.model.parameters()):,} parameters, {describe(run.settings)}"
    )
    log(run.choose_step(arguments.compile))
    run.start_clock()
    log(f"{run.plan}")
    train(run, arguments.work)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    prepare = verbs.add_parser("prepare", help="make the token files")
    prepare.add_argument("--data", type=Path, required=True)
    prepare.add_argument("--vocab-size", type=int, default=4096)
    prepare.add_argument("--mix-rows", type=int, default=32768)
    prepare.add_argument("--seed", type=int, default=1)
    prepare.set_defaults(run=command_prepare)
    training = verbs.add_parser("train", help="train, or go on")
    training.add_argument("--data", type=Path)
    training.add_argument("--work", type=Path, required=True, help="folder of the run's state")
    training.add_argument("--resume", action="store_true")
    training.add_argument(
        "--minutes", type=float, help="budget: processor time per thread; 300 for a new run"
    )
    training.add_argument(
        "--finish", type=float, metavar="MINUTES", help="with --resume: mix and decay from now on"
    )
    for name, share in (("long", LONG), ("mix", MIX), ("decay", DECAY)):
        training.add_argument(
            f"--{name}", type=float, default=share, help="share of the budget at which it begins"
        )
    for field in OPTIONS:
        default = getattr(Settings, field)
        training.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default)
    training.add_argument("--dim", type=int, default=TinyConfig.dim)
    training.add_argument("--layers", type=int, default=TinyConfig.n_layers)
    training.add_argument("--threads", type=int, default=2)
    training.add_argument("--device", default="cpu")
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    training.set_defaults(run=command_train)
    publishing = verbs.add_parser("publish", help="write and measure the folder of a run's last state")
    publishing.add_argument("--work", type=Path, required=True)
    publishing.add_argument("--data", type=Path, help="where the run's data folder is now")
    publishing.set_defaults(run=command_publish)
    measuring = verbs.add_parser("measure", help="print a folder's figures")
    measuring.set_defaults(run=command_measure)
    for each in (publishing, measuring):
        each.add_argument("--out", type=Path, default=Path("CodeLlama-tiny"))
        each.add_argument("--lines", type=int, default=400, help="how many lines are masked")
    return parser.parse_args()


def command_prepare(arguments: argparse.Namespace) -> None:
    from tiny_data import prepare

    prepare(arguments.data, arguments.vocab_size, arguments.mix_rows, arguments.seed)


def command_publish(arguments: argparse.Namespace) -> None:
    from tiny_publish import publish

    run = Run.load(arguments.work / "state.pt", "cpu", arguments.data)
    log(json.dumps(publish(run, arguments.out, arguments.lines), indent=2))


def command_measure(arguments: argparse.Namespace) -> None:
    from tiny_eval import evaluate
    from tiny_publish import verify

    verify(arguments.out)
    log(json.dumps(evaluate(arguments.out, arguments.lines), indent=2))


def main() -> None:
    arguments = parse_arguments()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
