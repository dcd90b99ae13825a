"""What an operator sets: files of keys, lmdeploy's chat template, ranges."""

from __future__ import annotations

import json

import pytest

from llama.errors import ConfigError
from llama.serving.http.settings import Settings, read_chat_template, read_keys


def test_keys_come_from_a_file_and_from_the_environment(tmp_path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team\n a \n\nb c\n")
    assert read_keys(None, {}) == ()
    assert set(read_keys(file, {})) == {"a", "b c"}
    assert set(read_keys(file, {"CODELLAMA_API_KEYS": "d, e,a"})) == {"a", "b c", "d", "e"}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_a_file_of_keys_without_any_does_not_leave_the_door_open(tmp_path, text) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds no API key"):
        read_keys(file, {"CODELLAMA_API_KEYS": "other"})


def test_the_chat_template_of_lmdeploy(tmp_path) -> None:
    file = tmp_path / "codellama.json"
    file.write_text(json.dumps({"model_name": "codellama", "capability": "infilling"}))
    assert read_chat_template(file) == ("codellama", "infilling")
    file.write_text("{}")
    assert read_chat_template(file) == (None, None)


@pytest.mark.parametrize(
    "given", ["[]", "{", '{"capability": "poetry"}', '{"model_name": ""}', '{"system": "x"}']
)
def test_another_chat_template_is_refused(tmp_path, given) -> None:
    file = tmp_path / "codellama.json"
    file.write_text(given)
    with pytest.raises(ConfigError, match=r"codellama\.json"):
        read_chat_template(file)


@pytest.mark.parametrize(
    "field",
    [
        {"port": -1},
        {"port": 65536},
        {"max_queue": 0},
        {"body_timeout": float("nan")},
        {"capability": "poetry"},
        {"ssl_keyfile": "k"},
    ],
)
def test_settings_out_of_range_are_named_errors(field) -> None:
    with pytest.raises(
        ConfigError, match=next(iter(field)).partition("_key")[0].upper() if "ssl" in field else "is"
    ):
        Settings("name", **field)
