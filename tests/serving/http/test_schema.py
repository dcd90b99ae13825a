"""The schema of all doors together."""

from __future__ import annotations

import json
import re
from collections import defaultdict

from llama.serving.http.app import DOORS


def test_no_two_bodies_of_the_doors_have_one_name() -> None:
    """They stand beside each other in the schema, where one would hide the other."""
    found = defaultdict(set)
    for body in {body for door in DOORS for route in door.ROUTES for body in route.bodies}:
        schema = body.schema_of_fields()
        parts = schema.pop("$defs", {})
        for name, part in {**parts, body.__name__: schema}.items():
            found[name].add(json.dumps(part, sort_keys=True))
    assert [name for name, parts in found.items() if len(parts) > 1] == []
    text = json.dumps([sorted(parts) for parts in found.values()])
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(found)
