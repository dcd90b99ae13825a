"""A training run of CodeLlama-tiny: its settings, its state on the disk, and one step.

The state is written beside the old one and then takes its name, so that a killed run has one of the two whole.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_data import ROW, Position, TokenFiles
from tiny_model import TinyConfig, TinyLlama, weighted_loss
from tiny_plan import Plan
from torch import Tensor, nn
from torch.nn import functional as F

MAX_NORM = 1.0
FILES = ("consolidated.00.pth", "params.json", "tokenizer.model")
# Above it 1 - p has too few digits.
SUREST = 1 - 1e-5


@dataclass(frozen=True)
class Settings:
    """What a run is started with, and keeps."""

    data: str
    config: TinyConfig = field(default_factory=TinyConfig)
    optimizer: str = "muon"  # for the layers' matrices; the rest has AdamW. Or "adamw" for all.
    learning_rate: float = 5e-3  # of the layers' matrices
    other_rate: float = 3e-3  # of embeddings, output and norms
    weight_decay: float = 0.1
    middle_weight: float = 2.0  # in the loss, of a middle's tokens
    eot_weight: float = 8.0  # and of its EOT, which is one of some 300 tokens, and as likely as a line break
    loop_weight: float = 0.1  # of the loss against loops
    rows: int = 8  # of 1,024 tokens in a step
    seed: int = 1


def make_optimizers(model: TinyLlama, settings: Settings) -> list[torch.optim.Optimizer]:
    """Weight decay for matrices, but not for norms, nor for embeddings, whose rare rows would only shrink."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    norms = [p for p in model.parameters() if p.dim() == 1]
    embeddings, output = model.tok_embeddings.weight, model.output.weight
    rest: list[dict[str, Any]] = [
        {"params": [output], "lr": settings.other_rate, "weight_decay": settings.weight_decay},
        {"params": [embeddings, *norms], "lr": settings.other_rate, "weight_decay": 0.0},
    ]
    layers = {"params": matrices, "lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        made: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([layers, *rest], betas=(0.9, 0.95), fused=True)
        ]
    else:
        # Updates are scaled to the size of AdamW's, so rates of the two can be compared.
        muon = torch.optim.Muon([layers], adjust_lr_fn="match_rms_adamw")
        made = [muon, torch.optim.AdamW(rest, betas=(0.9, 0.95), fused=True)]
    for group in itertools.chain(*(optimizer.param_groups for optimizer in made)):
        group["peak"] = group["lr"]
    return made


class Run:
    """Model, optimizers, place in the data, plan and clock."""

    def __init__(self, settings: Settings, plan: Plan, device: str) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.plan, self.device = settings, plan, torch.device(device)
        self.files = TokenFiles(Path(settings.data), settings.seed)
        self.model = TinyLlama(settings.config, self.files.tokenizer.vocab_size)
        self.model.init_weights()
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, settings)
        self.position = Position()
        self.step, self.tokens, self.minutes_before = 0, {"plain": 0, "mix": 0}, 0.0
        self.dtype = torch.float32
        self.hidden: Any = self.model.hidden
        self.start_clock()

    def start_clock(self) -> None:
        self._started = self._seconds()

    def _seconds(self) -> float:
        if self.device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        return time.monotonic()

    def minute(self) -> float:
        return self.minutes_before + (self._seconds() - self._started) / 60

    def state(self) -> dict[str, Any]:
        return {
            "settings": asdict(self.settings),
            "plan": asdict(self.plan),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": asdict(self.position),
            "counters": {"step": self.step, "tokens": self.tokens, "minutes_before": self.minute()},
        }

    @classmethod
    def load(cls, path: Path, device: str, data: Path | None = None) -> Run:
        """The run of a state file; `data` where its prepared folder has moved."""
        state = torch.load(path, weights_only=True, map_location=device)
        kept = state["settings"] | {"config": TinyConfig(**state["settings"]["config"])}
        run = cls(Settings(**kept | ({"data": str(data)} if data else {})), Plan(**state["plan"]), device)
        run.model.load_state_dict(state["model"])
        for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        run.position = Position(**state["position"])
        vars(run).update(state["counters"])
        run.start_clock()
        return run

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            torch.save(self.state(), file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def write_checkpoint(self, folder: Path) -> None:
        """The three files of a checkpoint in Meta's layout, in bfloat16."""
        weights = {key: value.to("cpu", torch.bfloat16) for key, value in self.model.state_dict().items()}
        torch.save(weights, folder / FILES[0])
        (folder / FILES[1]).write_text(json.dumps(self.model.config.params_json(), indent=2) + "\n")
        (folder / FILES[2]).write_bytes(self.files.tokenizer.proto)

    def batch(self, phase: str) -> tuple[Tensor, Tensor]:
        """Ids [rows, length + 1] and marks; rows of half the length, and twice as many, in the short phase."""
        take = self.files.mix_rows if phase == "mix" else self.files.plain_rows
        ids, marks = take(self.position, self.settings.rows)
        if phase == "short":
            half = ROW // 2
            ids, marks = (torch.cat((each[:, : half + 1], each[:, half:])) for each in (ids, marks))
        return ids.to(self.device), marks.to(self.device)

    def loss(self, ids: Tensor, marks: Tensor) -> Tensor:
        """Mean nats a token, middles weighted."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.hidden(ids[:, :-1])
        targets = ids[:, 1:].flatten()
        weights = 1 + (self.settings.middle_weight - 1) * marks[:, 1:].flatten().float()
        weights = weights.masked_fill(targets == self.files.tokenizer.eot, self.settings.eot_weight)
        without = self._without_eot(ids, marks)[:, 1:].flatten()
        return weighted_loss(
            hidden.flatten(0, 1), self.model.output.weight, targets, weights, without, self.dtype
        )

    def _without_eot(self, ids: Tensor, marks: Tensor) -> Tensor:
        """EOT's id at the tokens of an infilling prompt, else -1.

        Suffix first, nothing shows where the prefix ends and the middle begins. As most line ends are the
        prefix's, a small model learns there that no line end has an EOT, and middles would not end. So what
        stands in prompts is no example of where they end.
        """
        tokenizer = self.files.tokenizer
        begun, ended = ((ids == each).cumsum(1) for each in (tokenizer.pre, tokenizer.eot))
        return torch.where((begun > ended) & (marks == 0), tokenizer.eot, -1)

    def loss_of_loops(self, ids: Tensor, marks: Tensor) -> Tensor:
        """Mean -log(1 - p) of the marked tokens, in nats."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            # Not the compiled one, which would be compiled again for rows of this length.
            hidden = self.model.hidden(ids[:, :-1].to(self.device))
            marked = marks[:, 1:].bool().to(self.device)
            logits = F.linear(hidden[marked], self.model.output.weight)
        targets = ids[:, 1:].to(self.device)[marked]
        p = logits.float().softmax(-1).gather(1, targets[:, None])
        return -torch.log1p(-p.clamp(max=SUREST)).mean()

    def advance(self, loops: tuple[Tensor, Tensor] | None = None) -> tuple[float, float]:
        """One step: its loss, and the norm of its gradient before clipping.

        Args:
            loops: ids and marks of texts to train against.
        """
        minute = self.minute()
        scale = self.plan.scale(self.step, minute)
        phase = self.plan.phase(minute)
        ids, marks = self.batch(phase)
        loss = self.loss(ids, marks)
        self.model.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        if loops is not None:
            against = self.settings.loop_weight * self.loss_of_loops(*loops)
            against.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
            optimizer.step()
        self.step += 1
        self.tokens["mix" if phase == "mix" else "plain"] += len(ids) * (ids.shape[1] - 1)
        return loss.item(), norm.item()

    def choose_step(self, compile_model: bool) -> str:
        """Take the fastest of the dtypes, and the compiled model where a C++ compiler is there. Changes no weight."""
        rows = torch.zeros(2 * self.settings.rows, ROW // 2 + 1, dtype=torch.int64, device=self.device)
        seconds = {dtype: self._timed(rows, dtype) for dtype in (torch.bfloat16, torch.float32)}
        self.dtype = min(seconds, key=lambda dtype: seconds[dtype])
        said = ", ".join(f"{str(dtype)[6:]} {each:.2f} s" for dtype, each in seconds.items())
        if compile_model:
            try:
                self.hidden = torch.compile(self.model.hidden)
                said += f", compiled {self._timed(rows, self.dtype):.2f} s"
            except Exception as error:  # whatever the compiler raises: the model runs without it
                self.hidden = self.model.hidden
                said += f"; not compiled: {type(error).__name__}"
        return f"a step takes: {said}"

    def _timed(self, ids: Tensor, dtype: torch.dtype) -> float:
        """Seconds of forward and backward, the second time."""
        before, self.dtype = self.dtype, dtype
        for _ in range(2):
            started = self._seconds()
            self.loss(ids, torch.zeros_like(ids)).backward()  # type: ignore[no-untyped-call]
            seconds = self._seconds() - started
        self.model.zero_grad()
        self.dtype = before
        return seconds

    @torch.no_grad()
    def held_out_bits(self, name: str, most_rows: int = 96) -> float:
        """Bits per byte over evenly spread rows; a little high, as each row starts without what came before."""
        rows, bytes_a_row = self.files.held_out(name)
        rows = rows[:: max(1, len(rows) // most_rows)].to(self.device)
        nats = 0.0
        for start in range(0, len(rows), 8):
            few = rows[start : start + 8]
            nats += float(self.loss(few, torch.zeros_like(few))) * len(few) * ROW
        return nats / math.log(2) / (len(rows) * bytes_a_row)


def describe(settings: Settings) -> str:
    return json.dumps(asdict(settings))
