"""A batch on several replicas of a model, which Ray Data starts and shares the requests out to (extra [ray]).

The file of answers is written here, in order, as without Ray. A replica answers a few multiples of what it has in
flight at a time; if one dies, Ray starts another, and what the dead one had is asked again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import ray
import ray.data

from ..serving import AsyncEngine
from ..serving.ray_cluster import join_cluster, share
from .backend import ServerError
from .batch import Batch, Poster, run_requests
from .batch_files import BatchRequest, Json
from .in_process import check_alive, open_in_process
from .running import Model

__all__ = ["run_on_ray"]

# Requests that a replica is given at once, in multiples of those in flight: at the end of each such piece some
# of its slots are empty.
_PIECE = 8

Column = dict[str, Any]


class _Replica:
    """A model of one rank, in a process of Ray's."""

    def __init__(self, model: Model, in_flight: int) -> None:
        self._in_flight = in_flight
        self._loop = asyncio.Runner()
        self._llama = model.build()
        engine = AsyncEngine(self._llama.engine)
        self._ask = Poster(open_in_process(self._llama, engine, model.name), partial(check_alive, engine))

    def __call__(self, piece: Column) -> Column:
        requests = [BatchRequest(**json.loads(text)) for text in piece["request"]]
        records: list[str] = []

        def write(record: Json) -> None:
            records.append(json.dumps(record))

        self._loop.run(run_requests(requests, self._ask, self._in_flight, write))
        return {"record": records}


def run_on_ray(batch: Batch | None, model: Model, replicas: int, cluster: str | None, in_flight: int) -> int:
    """Answer what is left of a batch -> the exit code, 0.

    Args:
        batch: None on ranks other than the first of a launch, which is refused.
        cluster: the address of a Ray cluster that runs; None starts one that ends with this program.
        in_flight: requests that each replica answers at the same time.

    Raises:
        ConfigError: as `join_cluster` and `share`.
        ServerError: Ray gave up; what was answered is written.
        OSError: the file cannot be written.
    """
    join_cluster(cluster)
    assert batch is not None  # several ranks do not get here
    try:
        with batch.writing() as write:
            for record in _records(batch, model, replicas, in_flight):
                write(record)
    except ray.exceptions.RayError as error:
        raise ServerError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()
    return 0


def _records(batch: Batch, model: Model, replicas: int, in_flight: int) -> Iterator[Json]:
    """The records of what is left, in order."""
    rows = [{"request": json.dumps(asdict(request))} for request in batch.left()]
    if not rows:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # A file that is short is still shared out.
    piece = max(1, min(_PIECE * in_flight, -(-len(rows) // replicas)))
    # Replicas have other working folders.
    adapter = None if model.adapter is None else model.adapter.resolve()
    absolute = replace(model, folder=model.folder.resolve(), adapter=adapter)
    answered = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // piece)).map_batches(
        _Replica,
        fn_constructor_args=(absolute, in_flight),
        batch_size=piece,
        compute=ray.data.ActorPoolStrategy(size=replicas),
        **share(replicas, model.device),
    )
    for row in answered.iter_rows():
        yield json.loads(row["record"])
