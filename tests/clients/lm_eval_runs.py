"""What the two tests of lm-eval share: tasks of its format in a folder, and a program that runs there offline."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from asked import quiet_environment
from server_process import LIMIT

TASKS = Path(__file__).with_name("lm_eval_tasks")


def write_tasks(folder: Path, going_on: Iterable[dict[str, str]]) -> None:
    """Write the tasks `choose` and `go_on`, and the data of both.

    Args:
        going_on: the documents of `go_on`, each a text and its target.
    """
    for path in TASKS.glob("*.yaml"):
        (folder / path.name).write_text(path.read_text().replace("DATA", str(folder)))
    (folder / "choose.jsonl").write_text((TASKS / "choose.jsonl").read_text())
    (folder / "go_on.jsonl").write_text("".join(json.dumps(each) + "\n" for each in going_on))


def run_offline(folder: Path, *command: object) -> str:
    """Run a program in `folder`, where no hub can be asked, to its end -> what it printed."""
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [str(each) for each in command],
        env={**quiet_environment(), **offline},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
