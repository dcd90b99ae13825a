"""The results of `make gpu`: which code they belong to, what is said of them, and the clocks beside them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gpu_program import gpu_program, until

MACHINE = {"device": "NVIDIA X", "torch": "2.13.0"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    return gpu_program(monkeypatch)


# ---- the code's state ----


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one commit."""
    root = tmp_path / "project"
    (root / "llama").mkdir(parents=True)
    (root / "llama" / "a.py").write_text("a = 1\n")
    (root / ".gitignore").write_text("build/\n")
    git(root, "init", "-q")
    commit(root)
    return root


def git(root: Path, *words: str) -> str:
    names = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(
        ["git", *names, *words], cwd=root, check=True, capture_output=True, text=True
    ).stdout


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    return git(root, "rev-parse", "HEAD").strip()


def test_the_code_s_state_is_its_commit_and_what_was_changed(gpu, project):
    def identity(out: str = "build/gpu") -> str:
        return str(gpu.results.identity(project, project / out))

    first = git(project, "rev-parse", "HEAD").strip()
    assert identity() == first[:12]
    (project / "build").mkdir()
    (project / "build" / "x").write_text("ignored")
    (project / "figures").mkdir()
    (project / "figures" / "results.json").write_text("{}")
    assert identity("figures") == first[:12]  # the results themselves are none of it
    seen = {identity()}
    assert first[:12] + " changed" in seen.copy().pop()
    (project / "llama" / "a.py").write_text("a = 2\n")
    seen.add(identity("figures"))
    (project / "llama" / "b.py").write_text("b = 1\n")
    seen.add(identity("figures"))
    (project / "llama" / "b.py").write_text("b = 2\n")
    seen.add(identity("figures"))
    seen.add(identity("other"))
    assert len(seen) == 5
    assert identity("figures") == identity("figures")
    assert commit(project)[:12] == identity()


def test_without_git_the_sources_are_the_state(gpu, project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    first = gpu.results.identity(project, project / "build")
    assert first.startswith("files ")
    assert gpu.results.identity(project, project / "build") == first
    (project / "llama" / "a.py").write_text("a = 2\n")
    assert gpu.results.identity(project, project / "build") != first


def test_a_copy_within_another_checkout_is_not_that_one(gpu, project):
    assert gpu.results.identity(project / "llama", project / "build").startswith("files ")


# ---- results.md ----


def test_a_row_has_the_median_the_range_the_bound_and_the_share(gpu):
    figures = gpu.figures
    cost = figures.Cost(bytes=1e9, flops=1e9, tokens=2)
    rows = {
        "ceilings": [
            figures.Figure("copy", "GB/s", [900.0, 1000.0, 1100.0], ceiling="bandwidth"),
            figures.Figure("small copy", "GB/s", [10.0], ceiling="bandwidth"),
            figures.Figure("product", "TFLOP/s", [100.0], ceiling="matmul"),
        ],
        "decode-7b": [figures.Figure("decode", "tokens/s", [1000.0, 500.0, 1500.0], cost, note="a note")],
        "prefill-7b": [figures.Figure("prefill", "ms", [4.0], cost)],
    }
    entry = {"status": "done", "seconds": 3.0, "lacking": [], "clocks": {"sm_mhz": 1980.0}}
    parts = {name: {**entry, "figures": [each.as_json() for each in found]} for name, found in rows.items()}
    run = gpu.results.Run("abc", MACHINE, parts)
    text = gpu.report.markdown(run)
    assert "| decode (a note) | 1,000 tokens/s | 500 to 1,500, 3 | 2,000 tokens/s | 50% |\n" in text
    assert "| prefill | 4.00 ms |  | 1.00 ms | 25% |\n" in text
    assert "| copy | 1,000 GB/s | 900 to 1,100, 3 |  |  |\n" in text
    assert "done in 3 s; SM 1980 MHz\n" in text
    assert "tests: not run yet\n" in text
    assert "pretended" not in text
    pretended = gpu.report.markdown(dataclasses.replace(run, machine={**MACHINE, "pretended": True}))
    lines = [line for line in pretended.splitlines() if line and not line.startswith("| ---")]
    assert all("pretended" in line for line in lines)
    del parts["ceilings"]
    assert "| decode (a note) | 1,000 tokens/s | 500 to 1,500, 3 |  |  |\n" in gpu.report.markdown(run)


# ---- clocks ----


def test_clocks_are_what_nvidia_smi_says_meanwhile(gpu, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    lines = "1980, 2619, 40, 300.5, 0x0\\n1700, 2619, 60, [N/A], 0x4\\n1900, 2619, 50, 700, 0x0\\nno GPU\\n"
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\ntouch {tmp_path}/said\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found: dict[str, Any] = {}
    with gpu.clocks.watched(found):
        until((tmp_path / "said").exists)
    assert found == {
        "sm_mhz": 1900,
        "memory_mhz": 2619,
        "temperature_c": 60,
        "power_w": 700,
        "throttle_reasons": ["0x0", "0x4"],
    }
    monkeypatch.setenv("PATH", "")
    with gpu.clocks.watched(found := {}):
        pass
    assert found == {}
