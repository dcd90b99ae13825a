"""From a training state to the folder CodeLlama-tiny: Meta's files, notices, figures and a model card.

The folder is written beside the target, checked and measured, and then takes its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
from tiny_data import NOTICES
from tiny_eval import Figures, evaluate
from tiny_loops import MINUTES as LOOP_MINUTES
from tiny_loops import TEXTS
from tiny_run import FILES, Run

MOST_BYTES = 20_000_000


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def write_files(run: Run, folder: Path) -> None:
    """Write Meta's four files, and the notices. The checksums are those of the files read back."""
    run.write_checkpoint(folder)
    (folder / "checklist.chk").write_text("".join(f"{md5(folder / name)}  {name}\n" for name in FILES))
    shutil.copyfile(run.files.folder / NOTICES, folder / NOTICES)


def verify(folder: Path) -> None:
    for line in (folder / "checklist.chk").read_text().splitlines():
        digest, name = line.split()
        if md5(folder / name) != digest:
            raise RuntimeError(f"{folder / name} does not have the checksum {digest}")


def package_table(packages: list[dict[str, Any]]) -> str:
    """The packages of the training text by size, as rows of a table."""
    rows = (
        "| {name} {version} | {licence} | {megabytes:.2f} |".format(**p, megabytes=p["characters"] / 1e6)
        for p in packages
    )
    return "\n".join(rows)


def card(run: Run, figures: Figures) -> str:
    """The model card: the template, filled with the figures."""
    config, settings, facts = run.model.config, run.settings, run.files.facts
    counts = ("lines", "bodies", "answers")
    bits = [key for key in figures if key.endswith("_per_byte")]
    shown = {key: str(value) if key in counts else f"{value:.1%}" for key, value in figures.items()}
    shown |= {key: f"{figures[key]:.3f}" for key in bits}
    return string.Template((Path(__file__).parent / "tiny_card.md").read_text()).substitute(
        shown,
        **config.params_json() | {"vocab_size": run.files.tokenizer.vocab_size},
        parameters=f"{sum(p.numel() for p in run.model.parameters()):,}",
        ffn_hidden=config.ffn_hidden,
        context=run.model.context,
        held_out_modules=", ".join(f"`{module}`" for module in facts["held_out"]),
        files=f"{facts['files']:,}",
        megabytes=f"{sum(p['characters'] for p in facts['packages']) / 1e6:.0f}",
        distinct=f"{facts['tokens'] / 1e6:.0f}",
        package_count=len(facts["packages"]),
        packages=package_table(facts["packages"]),
        refused="; ".join(facts["refused"]),
        dropped=", ".join(f"`{name}`" for name in facts["dropped"]),
        torch=torch.__version__,
        sentencepiece=facts["sentencepiece"],
        minutes=f"{run.plan.end_at:.0f}",
        long=f"{run.plan.long_at / run.plan.end_at:.2f}",
        mix=f"{run.plan.mix_at / run.plan.end_at:.2f}",
        decay=f"{run.plan.decay_at / run.plan.end_at:.2f}",
        steps=f"{run.step:,}",
        tokens=f"{sum(run.tokens.values()) / 1e6:.1f}",
        plain_tokens=f"{run.tokens['plain'] / 1e6:.1f}",
        mix_tokens=f"{run.tokens['mix'] / 1e6:.1f}",
        batch=settings.rows,
        optimizer={"muon": "Muon", "adamw": "AdamW"}[settings.optimizer],
        learning_rate=f"{settings.learning_rate:g}",
        other_rate=f"{settings.other_rate:g}",
        middle_weight=f"{settings.middle_weight:g}",
        eot_weight=f"{settings.eot_weight:g}",
        loop_weight=f"{settings.loop_weight:g}",
        loop_texts=TEXTS,
        loop_minutes=f"{LOOP_MINUTES:g}",
        seed=settings.seed,
    )


def publish(run: Run, out: Path, samples: int) -> Figures:
    """Write, verify and measure in a folder beside the target, then put it in the target's place."""
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    write_files(run, fresh)
    verify(fresh)
    figures = evaluate(fresh, samples)
    (fresh / "MODEL_CARD.md").write_text(card(run, figures))
    size = sum(path.stat().st_size for path in fresh.iterdir())
    if size > MOST_BYTES:
        raise RuntimeError(f"{fresh} has {size:,} bytes, more than {MOST_BYTES:,}")
    fresh.chmod(0o755)  # mkdtemp makes it private
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(fresh, target)
        shutil.rmtree(old)
    else:
        os.rename(fresh, target)
    return figures
