"""`adapter` wherever weights are read: the verbs, the examples, and what they print."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import LINEAR, WEIGHTS, base_folders, replace_tensors, save_adapter, tensors_of
from conversions import content
from ranks import ROOT
from tiny_models import SHAPE, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.fingerprint import fingerprint
from llama.cli import main
from llama.evaluation.local import model_info

TINY = ROOT / "CodeLlama-tiny"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds m1, m2, hf and `adapter`."""
    place = tmp_path_factory.mktemp("commands")
    base_folders(place)
    adapter = save_adapter(place / "adapter", target_modules=LINEAR, rank_pattern={"q_proj": 6})
    # In 16 bits the products are exact, so weights can be compared bit for bit on every CPU.
    replace_tensors(adapter, {name: value.bfloat16() for name, value in tensors_of(adapter).items()})
    return place


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(map(str, words)))
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("layout", ["meta", "hf"])
@pytest.mark.parametrize("source", ["m2", "hf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_converted_folder_has_it_merged(
    tmp_path: Path, place: Path, run: Run, source: str, layout: str, dtype: str
) -> None:
    """The weights, and so the answers, are bit for bit those of a model that is loaded with the adapter."""
    adapter = place / "adapter"
    words = ("convert", place / source, tmp_path / "out", "--to", layout, "--dtype", dtype)
    code, _, err = run(*words, "--adapter", adapter)
    assert code == 0, err
    options: dict[str, Any] = {"max_seq_len": 64, "max_batch_size": 1, "device": "cpu", "dtype": dtype}
    with (
        Llama.build(tmp_path / "out", **options) as merged,
        Llama.build(place / source, adapter=adapter, **options) as adapted,
        Llama.build(place / source, **options) as plain,
    ):
        states = [each.model.state_dict() for each in (merged, adapted, plain)]
    names = [name for name, value in states[0].items() if not torch.equal(value, states[2][name])]
    assert len(names) == 2 * len(LINEAR)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert (tmp_path / "out" / "adapter_config.json").exists() is False


def test_a_refused_adapter_leaves_nothing(tmp_path: Path, place: Path, run: Run) -> None:
    (tmp_path / "adapter").mkdir()
    before = content(tmp_path)
    code, _, err = run(
        "convert", place / "hf", tmp_path / "out", "--to", "meta", "--adapter", tmp_path / "adapter"
    )
    assert code == 1
    assert "has no adapter_config.json" in err
    assert content(tmp_path) == before


def test_a_merged_value_that_the_base_dtype_cannot_hold_is_named(
    tmp_path: Path, place: Path, run: Run
) -> None:
    """The files hold float16, the merged weights are float32."""
    base = save_checkpoint(tmp_path / "half", SHAPE, WEIGHTS, tiny_model_path(), dtype=torch.float16)
    tensors = {name: value * 1e4 for name, value in tensors_of(place / "adapter").items()}
    adapter = shutil.copytree(place / "adapter", tmp_path / "great")
    words = ("convert", base, tmp_path / "out", "--to", "hf", "--adapter", replace_tensors(adapter, tensors))
    code, _, err = run(*words)
    assert code == 1
    assert "holds values up to" in err
    assert "float16 ends at 65504; keep float32" in err
    assert not (tmp_path / "out").exists()


def test_info_and_verify_tell_of_it(tmp_path: Path, place: Path, run: Run) -> None:
    adapter = place / "adapter"
    code, out, _ = run("info", place / "hf", "--adapter", adapter)
    assert code == 0
    assert "adapter         LoRA of rank 4 to 6: changes 14 tensors\n" in out
    code, out, _ = run("verify", place / "hf", "--adapter", adapter)
    assert code == 0
    assert "pass  adapter          LoRA of rank 4 to 6: changes 14 tensors\n" in out
    count = sum(value.numel() for _, _, value in open_checkpoint(place / "hf", adapter=adapter).stored())
    assert f"pass  values           all {count:,} are finite\n" in out
    tensors = tensors_of(save_adapter(tmp_path / "bad", target_modules=["q_proj"]))
    replace_tensors(tmp_path / "bad", {name: value[:, :48] for name, value in tensors.items()})
    code, out, _ = run("verify", place / "hf", "--adapter", tmp_path / "bad")
    assert code == 1
    assert "fail  adapter " in out
    assert "pass  values " in out
    assert "adapter" not in run("verify", place / "hf")[1]


def test_an_evaluation_knows_the_model_by_its_adapter_too(place: Path) -> None:
    """Its samples must not be continued with another adapter."""
    options: dict[str, Any] = {"max_seq_len": 64, "max_batch_size": 1, "device": "cpu"}
    adapter = place / "adapter"
    with Llama.build(place / "hf", adapter=adapter, **options) as llama:
        found = model_info(llama).weights
    assert found == fingerprint(open_checkpoint(place / "m2", adapter=adapter))
    assert found != fingerprint(open_checkpoint(place / "hf"))


# ---- who hands it on ---------------------------------------------------------------------------------------


class BuiltError(Exception):
    """Stands for a build."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keywords of `Llama.build`, which then stops."""
    found: dict[str, Any] = {}

    def build(*_: Any, **options: Any) -> None:
        found.update(options)
        raise BuiltError

    monkeypatch.setattr(Llama, "build", build)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["chat", TINY],
        ["complete", TINY, "README.md"],
        ["infill", TINY, "README.md"],
        ["batch", TINY, "IN", "OUT"],
        ["score", TINY, "README.md"],
        ["serve", TINY],
        ["eval", "humaneval", TINY, "--sandbox", "limits", "--limit", "1"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_that_loads_a_model_hands_it_on(
    tmp_path: Path, built: dict[str, Any], monkeypatch: pytest.MonkeyPatch, words: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("a <FILL_ME> b")
    (tmp_path / "IN").write_text(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions"}))
    if words[0] == "serve":
        monkeypatch.setenv("RANK", "1")  # which needs no port
    with open(tmp_path / "IN") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(BuiltError):
            main([*map(str, words), "--adapter", "here"])
    assert built["adapter"] == Path("here")


@pytest.mark.parametrize("name", ["completion", "infilling", "instructions"])
def test_the_examples_hand_it_on(built: dict[str, Any], name: str) -> None:
    example = runpy.run_path(str(ROOT / f"example_{name}.py"))
    with pytest.raises(BuiltError):
        example["main"](adapter="here")
    assert built["adapter"] == "here"


def test_a_replica_elsewhere_gets_whole_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llama.cli import serve

    seen: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "_run_on_ray", lambda options, settings: seen.append(options) or 0)
    assert main(["serve", str(TINY), "--ray", "--adapter", "here"]) == 0
    assert serve._build(seen[0])["adapter"] == Path("here")
