"""Laws of the conversation's file: what was saved comes back, and a bad file changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_backend import ScriptedBackend, talk

from llama.errors import DialogError
from llama.terminal.commands import Commands
from llama.terminal.conversation import Conversation, Turn

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXTS, st.lists(st.builds(Turn, TEXTS, TEXTS), max_size=4))
def test_what_was_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory, system: str, turns: list[Turn]
) -> None:
    path = tmp_path_factory.getbasetemp() / "conversation.json"
    Conversation(system, turns).save(path)
    assert Conversation.load(path) == Conversation(system, turns)


def test_the_file_has_the_messages_of_openais_api(tmp_path: Path) -> None:
    Conversation("s", [Turn("q", "a")]).save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]
    }


def test_save_and_load_within_the_program(tmp_path: Path) -> None:
    file = tmp_path / "with a blank.json"
    talk(ScriptedBackend(["1"]), ["x", f"/save {file}"], system="s")
    backend = ScriptedBackend(["0", "2"])
    assert talk(backend, ["gone", f"/load {file}", "y"]).code == 0
    assert backend.said[1] == ["s", "x", "1", "y"]


USER, ASSISTANT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [], "model": "x"}, "nothing else"),
        ({"messages": ["x"]}, "message 0"),
        ({"messages": [{"role": "user"}]}, "message 0"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 1"),
        ({"messages": [{**USER, "name": "x"}]}, "message 0"),
        ({"messages": [ASSISTANT]}, "expected 'user'"),
        ({"messages": [USER, USER]}, "message 1 of the file has the role 'user'"),
        ({"messages": [USER]}, "no answer"),
        ({"messages": [USER, ASSISTANT, {"role": "system", "content": ""}]}, "message 2"),
        ({"messages": [{"role": "user", "content": "\ud800"}, ASSISTANT]}, "surrogate"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_file_is_named_and_changes_nothing(
    tmp_path: Path, content: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DialogError, match=words):
        Conversation.load(file)
    kept = Conversation("s", [Turn("q", "a")])
    assert not Commands(kept, with_system=True).run(f"/load {file}")
    assert kept == Conversation("s", [Turn("q", "a")])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["/save", "/load ", "/load nowhere.json", "/save no/folder/x", "/load .", "/save a\0b"]
)
def test_a_file_that_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert not Commands(Conversation(), with_system=True).run(line)
    assert list(tmp_path.iterdir()) == []


def test_a_system_is_not_loaded_where_it_would_not_be_sent(tmp_path: Path) -> None:
    Conversation("s", []).save(tmp_path / "c.json")
    kept = Conversation()
    assert not Commands(kept, with_system=False).run(f"/load {tmp_path / 'c.json'}")
    assert kept == Conversation()
