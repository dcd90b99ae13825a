"""Signal handlers on an event loop, shared by all services of the loop, and restored after the last one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["on_signals"]


@dataclass
class _Listeners:
    """The handler that a signal had before, and what to call now."""

    before: Any
    actions: list[Callable[[], object]] = field(default_factory=list)

    def tell(self) -> None:
        for action in list(self.actions):
            action()

    def restore(self, number: signal.Signals) -> None:
        """Give the signal its old handler back.

        A handler that the host set with `loop.add_signal_handler` cannot be restored: all that is left of it
        is asyncio's own, which does nothing. The signal then gets its default action.
        """
        lost = getattr(self.before, "__module__", "").startswith("asyncio.")
        signal.signal(number, self.before if self.before is not None and not lost else signal.SIG_DFL)


# A loop has one handler for each signal, but may run several services.
_LISTENERS: dict[tuple[asyncio.AbstractEventLoop, signal.Signals], _Listeners] = {}


@contextlib.contextmanager
def on_signals(signals: tuple[signal.Signals, ...], action: Callable[[], object]) -> Iterator[None]:
    """Call `action` on the running loop for these signals. Only the main thread gets any."""
    loop = asyncio.get_running_loop()
    heard = []
    if threading.current_thread() is threading.main_thread():
        for each in signals:
            with contextlib.suppress(NotImplementedError):  # loops on Windows
                if (loop, each) not in _LISTENERS:
                    listeners = _Listeners(signal.getsignal(each))
                    loop.add_signal_handler(each, listeners.tell)
                    _LISTENERS[loop, each] = listeners
                _LISTENERS[loop, each].actions.append(action)
                heard.append(each)
    try:
        yield
    finally:
        for each in heard:
            listeners = _LISTENERS[loop, each]
            listeners.actions.remove(action)
            if not listeners.actions:
                del _LISTENERS[loop, each]
                loop.remove_signal_handler(each)
                listeners.restore(each)
