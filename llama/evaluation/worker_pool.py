"""Threads that run programs while a model writes the next ones.

Never imports torch. Knows nothing of files and sandboxes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from .problem import Sample

__all__ = ["WorkerPool"]

# When so many answers wait to be graded, the model waits. A kill loses no more than these and what is running.
_MOST_WAITING = 2048
# How long programs that run may take to end after the run failed, in seconds. Later they end with this process.
_LAST_SECONDS = 3.0
_Item = TypeVar("_Item")


class WorkerPool(Generic[_Item]):
    """Threads that grade answers, until the end of a `with`. What still waits then is dropped.

    Not an executor: Python joins its threads at exit, so that Ctrl-C would wait for a program's 30 seconds.

    Args:
        workers: threads.
        grade: makes the sample of an answer (or of a sample that is graded again); several at a time.
        keep: is given each sample, one at a time, by the thread that graded it.
    """

    def __init__(
        self, workers: int, grade: Callable[[_Item], Sample], keep: Callable[[Sample], None]
    ) -> None:
        self._grade, self._keep = grade, keep
        self._waiting: deque[_Item] = deque()
        self._running = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"worker {number}", daemon=True)
            for number in range(workers)
        ]

    def put(self, answer: _Item) -> None:
        """Have an answer graded. Waits while too many are waiting. Raises as `finish`."""
        with self._changed:
            self._wait_until(lambda: len(self._waiting) < _MOST_WAITING)
            self._waiting.append(answer)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until every answer is graded and kept.

        Raises:
            What `grade` or `keep` raised first.
        """
        with self._changed:
            self._wait_until(lambda: not self._waiting and not self._running)

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._failure is not None or ready())
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._failure is not None or bool(self._waiting)
                )
                if self._closed or self._failure is not None:
                    return
                answer = self._waiting.popleft()
                self._running += 1
            sample: Sample | None = None
            failure: BaseException | None = None
            try:
                sample = self._grade(answer)
            except BaseException as error:
                failure = error
            with self._changed:
                if sample is not None and not self._closed:
                    try:
                        self._keep(sample)
                    except BaseException as error:
                        failure = error
                self._running -= 1
                self._failure = self._failure or failure
                self._changed.notify_all()

    def __enter__(self) -> WorkerPool[_Item]:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + _LAST_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
