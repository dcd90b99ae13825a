"""A Ray cluster: joining or starting one, and what it sets aside for each copy of a model (extra [ray])."""

from __future__ import annotations

import socket

import ray
import torch

from ..distributed import environment
from ..errors import ConfigError

__all__ = ["join_cluster", "share"]

_REACH_SECONDS = 10.0


def join_cluster(address: str | None) -> None:
    """Join the Ray cluster at an address, or start one of this machine alone, which ends with this program.

    Raises:
        ConfigError: this is one of several ranks, or there is no cluster at that address.
    """
    if environment.world_size() > 1:
        raise ConfigError(
            "Ray starts the replicas itself, each on one rank; run this without torchrun, or one model on several"
            " ranks without --ray"
        )
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
        else:
            _reach(address)
            ray.init(address=address, log_to_driver=False)
    except (OSError, ValueError) as error:  # ConnectionError among them
        raise ConfigError(
            f"there is no Ray cluster at {address}: {error}; if there is one, it may ask for its token, which Ray"
            " sends with RAY_AUTH_MODE=token in the environment"
        ) from None


def _reach(address: str) -> None:
    """Raise OSError if nobody listens there: Ray itself would try for minutes, and say little."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_SECONDS).close()


def share(replicas: int, device: str) -> dict[str, float]:
    """What Ray sets aside for each replica: an equal part of the cores, and a GPU if `device` asks for one.

    Ray sets OMP_NUM_THREADS to the cores, unless it is set.

    Raises:
        ConfigError: the cluster has fewer cores, or GPUs, than replicas.
    """
    has = ray.cluster_resources()
    gpus, cores = int(has.get("GPU", 0)), int(has.get("CPU", 0))
    cuda = device.startswith("cuda") or (device == "auto" and gpus >= replicas and torch.cuda.is_available())
    for kind, number in (("GPU", gpus if cuda else replicas), ("core", cores)):
        if number < replicas:
            raise ConfigError(
                f"{replicas} replicas need a {kind} each, and the cluster has {number}; take fewer"
            )
    return {"num_cpus": float(cores // replicas), "num_gpus": float(cuda)}
