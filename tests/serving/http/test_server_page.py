"""docs/server.md against the bodies: every field that a route takes or refuses is named in its protocol's section."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ranks import ROOT

from llama.serving.http import llamacpp, mistral, ollama, openai, tgi
from llama.serving.http.bodies import Body

PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
DOORS = {
    "OpenAI": openai,
    "llama.cpp": llamacpp,
    "text-generation-inference": tgi,
    "Mistral": mistral,
    "Ollama": ollama,
}
# Of routes whose bodies have no table there: tokens, templates, and which model.
WITHOUT_TABLE = re.compile(r"/tokenize|/detokenize|/apply-template|/api/(show|pull)")


def fields(body: type[Body]) -> set[str]:
    names = set(body.schema_of_fields()["properties"])
    for field in body.model_fields.values():
        choices: Any = getattr(field.validation_alias, "choices", ())
        names |= set(choices)
    for part in body.PARTS.values():
        names |= fields(part)
    return names


def section(heading: str) -> str:
    (text,) = re.findall(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE)
    return text


@pytest.mark.parametrize("heading", DOORS)
def test_every_field_is_named(heading: str) -> None:
    bodies = {
        body
        for route in DOORS[heading].ROUTES
        if not WITHOUT_TABLE.match(route.paths[0])
        for body in route.bodies
    }
    quoted = re.findall(r"`([^`\n]+)`", section("Fields") + section(heading))
    missing = {name for body in bodies for name in fields(body)} - set(
        re.findall(r"[\w.]+", " ".join(quoted))
    )
    assert bodies
    assert not missing


def test_every_route_is_in_the_first_table() -> None:
    table = PAGE.partition("\n## ")[0]
    for door in DOORS.values():
        for route in door.ROUTES:
            for path in route.paths:
                if route.bodies or route.method == "GET":  # others only say that they are refused
                    assert f"`{path.partition('/{')[0]}`" in table
