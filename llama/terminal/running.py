"""From DIR or URL to a `Backend`, on every rank of the launch, until the program or a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..printable import tell
from ..serving.signals import on_signals

if TYPE_CHECKING:
    from ..generation import Llama
    from ..serving import AsyncEngine
    from .backend import Backend

__all__ = ["Model", "Server", "extra", "first_rank_of", "ranks_of", "run", "run_here", "run_model"]


@dataclass(frozen=True)
class Model:
    """A checkpoint folder, and what `Llama.build` takes for it."""

    folder: Path
    tokenizer: Path | None = None
    max_seq_len: int = 4096
    max_batch_size: int = 1
    device: str = "auto"
    dtype: str = "auto"
    model_parallel_size: int | None = None
    adapter: Path | None = None
    quantize: str | None = None
    cache_dtype: str = "auto"

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name

    def build(self) -> Llama:
        """Load it, on all ranks of the launch. Raises as `Llama.build`."""
        from ..generation import Llama

        return Llama.build(
            self.folder,
            self.tokenizer,
            self.max_seq_len,
            self.max_batch_size,
            self.model_parallel_size,
            device=self.device,
            dtype=self.dtype,
            adapter=self.adapter,
            quantize=self.quantize,
            cache_dtype=self.cache_dtype,
        )


@dataclass(frozen=True)
class Server:
    """A server's URL, the file of its API key, and which of its models; None for the environment's and its first."""

    url: str
    key_file: Path | None = None
    model: str | None = None


def run(source: Model | Server, main: Callable[[Backend], Coroutine[Any, Any, int]]) -> int:
    """Run `main` on what answers there -> its exit code, or 128 + n at SIGTERM and SIGHUP.

    Of a model on several ranks all call this: the first runs `main`, the others follow it and get 0. Loading
    the model, and the end of its ranks, included.

    Raises:
        LlamaError: as `Llama.build`, `Llama.serve` and `remote.connect`.
        KeyboardInterrupt: Ctrl-C, unless `main` hears it itself.
    """
    if isinstance(source, Server):
        return run_here(partial(_on_server, source, main))

    async def lead(llama: Llama, engine: AsyncEngine) -> int:
        from .local import LocalBackend

        return await main(LocalBackend(llama, engine, source.name))

    return run_model(source, lead)


def run_model(model: Model, lead: Callable[[Llama, AsyncEngine], Coroutine[Any, Any, int]]) -> int:
    """Load a model and run `lead` on it, on rank 0; as `run`."""
    with model.build() as llama:

        def main(engine: AsyncEngine) -> Awaitable[int]:
            return _until_signal(lead(llama, engine))

        code = asyncio.run(llama.serve(main))
        if code is None and llama.model.parallel.rank == 0:  # cancelled from outside
            return 128 + signal.SIGTERM
        return code or 0


def run_here(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run `work` without a model -> its exit code, as `run`."""
    return asyncio.run(_until_signal(work()))


def first_rank_of(source: Model | Server) -> bool:
    """Whether this process runs the program, and does not only follow. Nothing heavy is imported for a server."""
    if isinstance(source, Server):
        return True
    from ..distributed.environment import is_first_rank

    return is_first_rank()


def ranks_of(source: Model | Server) -> int:
    """Ranks of this launch that a model of the source would be on."""
    if isinstance(source, Server):
        return 1
    from ..distributed.environment import world_size

    return world_size()


async def _on_server(server: Server, main: Callable[[Backend], Coroutine[Any, Any, int]]) -> int:
    with extra("terminal", "a server's answers"):
        from .remote import connect, read_key
    async with connect(server.url, read_key(server.key_file), server.model) as backend:
        return await main(backend)


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Await `work` -> its exit code; SIGTERM and SIGHUP cancel it and make it 128 + their number."""
    task = asyncio.ensure_future(work)
    heard: list[int] = []

    def end(number: int) -> None:
        heard.append(number)
        task.cancel()

    with contextlib.ExitStack() as handlers:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP; leave it so.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                handlers.enter_context(on_signals((number,), partial(end, number)))
        try:
            return await task
        except asyncio.CancelledError:
            if not heard:
                raise
    tell("terminated")
    return 128 + heard[0]


@contextlib.contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around the import of an optional dependency: say which extra has it.

    Args:
        name: of the extra.
        what: needs it; for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "llama":
            raise
        raise ConfigError(
            f"{error.name} is missing, for {what}; pip install 'codellama-runtime[{name}]'"
        ) from None
