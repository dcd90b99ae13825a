"""Laws of what Ray is asked for: what cannot be had is refused at once, by name."""

from __future__ import annotations

import pytest
import ray
from ray_server import free_port

from llama.errors import ConfigError
from llama.serving import ray_cluster


def test_ray_is_refused_on_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Ray starts the replicas itself"):
        ray_cluster.join_cluster(None)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_is_not_there_is_named(form: str) -> None:
    address = form.format(free_port())
    with pytest.raises(ConfigError, match=f"there is no Ray cluster at {address}: "):
        ray_cluster.join_cluster(address)


@pytest.mark.parametrize(
    ("has", "device", "expected"),
    [
        ({"CPU": 9.0}, "cpu", {"num_cpus": 4.0, "num_gpus": 0.0}),
        ({"CPU": 9.0}, "auto", {"num_cpus": 4.0, "num_gpus": 0.0}),
        ({"CPU": 8.0, "GPU": 2.0}, "cuda", {"num_cpus": 4.0, "num_gpus": 1.0}),
        ({"CPU": 1.0}, "cpu", "2 replicas need a core each, and the cluster has 1"),
        ({"CPU": 8.0, "GPU": 1.0}, "cuda", "2 replicas need a GPU each, and the cluster has 1"),
        ({"CPU": 8.0}, "cuda", "2 replicas need a GPU each, and the cluster has 0"),
    ],
)
def test_replicas_share_what_the_cluster_has(
    monkeypatch: pytest.MonkeyPatch, has: dict[str, float], device: str, expected: dict[str, float] | str
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: has)
    if isinstance(expected, dict):
        assert ray_cluster.share(2, device) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            ray_cluster.share(2, device)
