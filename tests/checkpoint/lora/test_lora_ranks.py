"""Adapters on several ranks: PEFT's merged model on 1, 2 and 4, from every layout; and one adapter for all ranks."""

from __future__ import annotations

import copy
import json
import shutil
from typing import Any

import pytest
import torch
from adapter_script import BASES
from adapters import LINEAR, base, base_folders, change_config, quiet, save_adapter
from hf_models import IDS
from ranks import run_forked

RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each rank found, by the size of the launch; at 0 PEFT's scores with the adapter, then without."""
    import peft  # here: it takes seconds of each process that collects the tests

    place = tmp_path_factory.mktemp("adapters")
    base_folders(place)
    options: dict[str, Any] = {"modules_to_save": ["norm"], "rank_pattern": {"k_proj": 6}, "use_rslora": True}
    adapter = save_adapter(place / "adapter", target_modules=[*LINEAR, "embed_tokens", "lm_head"], **options)
    # The same tensors, but another scaling.
    change_config(shutil.copytree(adapter, place / "other"), lora_alpha=9)
    for report in run_forked(place / "reports", *((size, "adapter_script.py", place) for size in RANKS)):
        assert not any(report["codes"]), report["stderr"]
    with quiet():
        merged = peft.PeftModel.from_pretrained(copy.deepcopy(base()), adapter).merge_and_unload()
    told = {
        size: [json.loads((place / f"{size}.{rank}.json").read_text()) for rank in range(size)]
        for size in RANKS
    }
    return told | {0: [{"scores": scores(model)} for model in (merged, base())]}


@torch.no_grad()
def scores(model: Any) -> list[list[float]]:
    logs = model(torch.tensor(IDS)).logits.log_softmax(-1)
    return [
        [0.0, *(float(row[at, i]) for at, i in enumerate(ids[1:]))]
        for row, ids in zip(logs, IDS, strict=True)
    ]


@pytest.mark.parametrize("size", RANKS)
def test_the_scores_are_those_of_merge_and_unload(found: dict[int, list[dict[str, Any]]], size: int) -> None:
    with_adapter, without = (torch.tensor(each["scores"]) for each in found[0])
    assert (with_adapter - without).abs().max() > 1
    for rank in found[size]:
        for name in BASES:
            assert (torch.tensor(rank[name]) - with_adapter).abs().max() < 1e-3
        assert (torch.tensor(rank["afterwards"]) - without).abs().max() < 1e-3


@pytest.mark.parametrize("size", RANKS[1:])
@pytest.mark.parametrize("case", ["another", "none", "another replica"])
def test_ranks_with_different_adapters_refuse_all(
    found: dict[int, list[dict[str, Any]]], size: int, case: str
) -> None:
    for number, rank in enumerate(found[size]):
        own = {"none": "none.", "another": "/other."}.get(case.split()[0], "")
        says = own if number == size - 1 else "/adapter."
        assert rank[case].startswith(
            "CheckpointMismatchError: the ranks have different adapters; this one has "
        )
        assert says in rank[case]
