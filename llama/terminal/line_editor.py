"""The prompt at a terminal: prompt_toolkit's editor over several lines (extra [terminal])."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from prompt_toolkit import PromptSession
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output

from .readers import END_MARK, PROMPT, InputInterruptedError, is_command

__all__ = ["LineEditor"]


class LineEditor:
    """Reads from the terminal and draws on stderr, so that stdout has the answers alone.

    A text may have several lines, all of which can be edited until a line `!!` (or Alt-Enter) ends it. A
    command on the first line needs none. Arrow keys bring back what was said before.

    Args:
        source, drawing: by default the terminal of stdin, and stderr.
    """

    interactive = True

    def __init__(self, source: Input | None = None, drawing: Output | None = None) -> None:
        self._input = create_input() if source is None else source
        self._session: PromptSession[str] = PromptSession(
            f"\n{PROMPT}\n",
            multiline=True,
            key_bindings=_bindings(),
            input=self._input,
            output=create_output(sys.stderr) if drawing is None else drawing,
        )

    async def read(self) -> str:
        """See `Reader`."""
        try:
            # The program hears SIGINT itself; prompt_toolkit would remove its handler.
            return _without_mark(await self._session.prompt_async(handle_sigint=False))
        except KeyboardInterrupt:
            raise InputInterruptedError from None

    @contextlib.contextmanager
    def watch(self, stop: Callable[[], object]) -> Iterator[None]:
        """See `Reader`. Ctrl-C is read as a key here, and not sent as a signal.

        Under torchrun a signal would go to the launcher, which would end all ranks. Other keys are kept for
        the next prompt.
        """

        def keys() -> None:
            pressed = self._input.read_keys()
            store_typeahead(self._input, [each for each in pressed if each.key != Keys.ControlC])
            if self._input.closed or len(pressed) != sum(each.key != Keys.ControlC for each in pressed):
                stop()

        with self._input.raw_mode(), self._input.attach(keys):
            yield


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        at_end = not buffer.document.text_after_cursor.strip()
        if at_end and _is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    return bindings


def _is_complete(text: str) -> bool:
    """Whether Enter ends the input: a command, or a last line `!!`."""
    lines = text.rstrip().split("\n")
    return lines[-1].strip() == END_MARK or (len(lines) == 1 and is_command(lines[0]))


def _without_mark(text: str) -> str:
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if lines and lines[-1].strip() == END_MARK:
        lines.pop()
    return "\n".join(lines)
