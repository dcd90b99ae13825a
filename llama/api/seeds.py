"""A seed for each request of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from ..errors import RequestError
from ..values import rows
from .arguments import MAX_INT64, check_seed

__all__ = ["Seeds"]


class Seeds:
    """Gives each prompt of a call its seed.

    A seed passed to the call goes to each of its prompts unchanged, so that a result does not depend on the
    rest of the batch. A call without one gets a different seed for each prompt: derived from `base` and the
    number of the call if there is a base, else from one draw of torch's CPU generator. Every rank draws once
    in a call that samples, and not at all in any other. Ranks whose generators differ use the number that
    rank 0 drew.

    Args:
        base: the seed passed to `Llama.build`, or None.
        agree: maps the number that this replica drew to the first replica's; all replicas call it together.

    Raises:
        SamplingError: base is negative or not an integer.
    """

    def __init__(self, base: int | None, agree: Callable[[int], int]) -> None:
        self._base = None if base is None else check_seed(base)
        self._agree = agree
        self._calls = 0

    def of(self, seed: int | Iterable[int] | None, prompts: int, *, samples: bool) -> list[int]:
        """The seeds of a call, one for each prompt.

        Args:
            seed: as passed to the call: for all prompts, for each of them, or None.
            samples: whether the call draws anything; if not, the seeds are never used.

        Raises:
            RequestError: a list whose length is not the number of prompts.
            SamplingError: a seed that is negative or not an integer.
        """
        if seed is None:
            self._calls += 1
            entropy = [self._base, self._calls] if self._base is not None else self._draw() if samples else 0
            return [int(each) for each in np.random.SeedSequence(entropy).generate_state(prompts, np.uint64)]
        seeds = rows(seed)
        if seeds is None:
            return [check_seed(seed)] * prompts
        if len(seeds) != prompts:
            raise RequestError(
                f"{len(seeds)} seeds for {prompts} prompts; give one integer, or one for each prompt"
            )
        return [check_seed(each) for each in seeds]

    def _draw(self) -> int:
        """A number from torch's CPU generator, the same on all ranks."""
        # Spelled out, since the host may have set another default device or dtype.
        drawn = torch.randint(
            MAX_INT64, (), generator=torch.default_generator, device="cpu", dtype=torch.int64
        )
        # Within a model the first rank decides each token, so only the replicas have to agree.
        return self._agree(int(drawn))
