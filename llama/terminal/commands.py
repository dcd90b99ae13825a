"""The commands of the chat program: their names, and what each does to the conversation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import LlamaError, RequestError
from ..printable import reason, shown, tell
from .conversation import Conversation

__all__ = ["HELP", "Commands"]

HELP = """\
A text ends with a line that holds only !!; a command needs none.
  exit            leave (or Ctrl-D)
  end, /reset     begin a new conversation; the system message stays
  /system TEXT    set the system message; without TEXT there is none
  /save FILE      write the conversation, as JSON
  /load FILE      go on with a conversation that was saved
  /help           this list
Ctrl-C stops an answer, or drops what was typed. To send a text that looks like a command, put a blank in front."""


class Commands:
    """Runs commands on `conversation`.

    Args:
        with_system: the prompt format has a system message (chat).
    """

    def __init__(self, conversation: Conversation, *, with_system: bool) -> None:
        self.conversation = conversation
        self._with_system = with_system
        self._all: dict[str, Callable[[str], None]] = {
            "end": self._reset,
            "/reset": self._reset,
            "/system": self._system,
            "/save": self._save,
            "/load": self._load,
            "/help": self._help,
        }

    def run(self, line: str) -> bool:
        """Run one -> whether it could. A failure prints one line and changes nothing."""
        name, _, rest = line.strip().partition(" ")
        command = self._all.get(name)
        try:
            if command is None:
                raise RequestError(f"there is no command {name}; /help lists them")
            command(rest.strip())
        except (LlamaError, OSError) as error:
            tell(f"error: {reason(error)}")
            return False
        return True

    def _reset(self, rest: str) -> None:
        self.conversation.turns.clear()
        tell("a new conversation")

    def _system(self, rest: str) -> None:
        if not self._with_system:
            raise RequestError("only --cap chat has a system message")
        self.conversation.system = rest
        tell(f"the system message is now {shown(rest)}" if rest else "there is no system message now")

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        self.conversation.save(path)
        tell(f"{_turns(self.conversation)} written to {path}")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        found = Conversation.load(path)
        if found.system and not self._with_system:
            raise RequestError(f"{path} has a system message, which only --cap chat has")
        self.conversation.system, self.conversation.turns[:] = found.system, found.turns
        tell(f"{_turns(found)} read from {path}")

    def _help(self, rest: str) -> None:
        for line in HELP.splitlines():
            tell(line)


def _path(rest: str, command: str) -> Path:
    if not rest or "\0" in rest:
        raise RequestError(f"{command} needs the name of a file")
    return Path(rest).expanduser()


def _turns(conversation: Conversation) -> str:
    count = len(conversation.turns)
    return f"{count} {'turn' if count == 1 else 'turns'}"
