"""`--ray` where Ray is not installed, or cannot help. What it does where it can is in tests/ray (`make ray`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llama.cli import main

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "CodeLlama-tiny")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for module in ("serving.ray_cluster", "serving.http.ray_serve", "terminal.ray_data"):
        monkeypatch.delitem(sys.modules, f"llama.{module}", raising=False)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """IN and OUT of a batch."""
    (tmp_path / "in").write_text('{"custom_id": "1"}\n')
    return [str(tmp_path / "in"), str(tmp_path / "out")]


def test_both_verbs_say_which_extra_has_it(
    without_ray: None, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["serve", TINY, "--port", "0", "--ray"], ["batch", TINY, *files, "--ray"]):
        assert main(words) == 1
        assert "ray" in (said := capsys.readouterr().err)
        assert "pip install 'codellama-runtime[ray]'" in said


def test_a_server_at_a_url_has_its_own_replicas(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "http://127.0.0.1:9", *files, "--ray"]) == 1
    assert "--ray starts replicas of a folder" in capsys.readouterr().err
