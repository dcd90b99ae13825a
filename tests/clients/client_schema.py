"""schemathesis: requests made from /openapi.json, right ones and wrong ones. None may end in a 5xx.

They are counted, not timed, and the same ones are made in every run.
"""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest
import schemathesis
from asked import COMPLETION, TOKENS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.schemas import APIOperation
from server_process import LIMIT

# Requests of each route that follow the schema, and that break it.
EXAMPLES = 8
# An answer may be as long as the model's room, but not in this test.
SHORT = {"max_tokens": TOKENS, "max_completion_tokens": TOKENS, "n_predict": TOKENS, "max_new_tokens": TOKENS}


def shorten(body: object) -> object:
    """A body that asks for few tokens, if it asks for any number of them."""
    if not isinstance(body, dict):
        return body
    return {
        name: min(value, SHORT[name]) if name in SHORT and isinstance(value, int) else shorten(value)
        for name, value in body.items()
    }


def ask(operation: APIOperation, mode: GenerationMode, url: str) -> Counter[int]:
    """Make requests of one route -> how often it answered with each status. Fails at a 5xx."""
    counts: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def request(case: Case) -> None:
        case.body = shorten(case.body)
        answer = case.call(base_url=url, timeout=LIMIT)
        counts[answer.status_code] += 1
        assert answer.status_code < 500, f"{case.as_curl_command()}\n{answer.text[:500]}"
        if answer.status_code >= 400:
            assert "error" in json.loads(answer.content), answer.text[:500]

    try:
        request()
    except Unsatisfiable:
        # Without a body nothing in a request can be wrong.
        assert mode is GenerationMode.NEGATIVE
        assert not operation.body, operation.label
    return counts


@pytest.fixture(scope="module")
def routes(url: str) -> list[APIOperation]:
    """All routes of the schema."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    return [result.ok() for result in schema.get_all_operations()]


@pytest.fixture(scope="module")
def statuses(url: str, routes: list[APIOperation]) -> dict[str, Counter[int]]:
    """Route -> how often it answered with each status, after all requests."""
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    return {each.label: sum((ask(each, mode, url) for mode in modes), Counter()) for each in routes}


def test_no_request_ends_in_a_server_error(routes, statuses) -> None:
    assert len(routes) > 20
    assert all(statuses[each.label] for each in routes)


def test_every_door_saw_right_and_wrong_requests(routes, statuses) -> None:
    posts = [each.label for each in routes if each.body]
    assert len(posts) > 10
    assert [name for name in posts if not statuses[name][400] + statuses[name][422]] == []
    assert sum(statuses[name][200] for name in posts) > 2 * len(posts)


def test_the_server_still_answers(url, library, statuses) -> None:
    body = {"prompt": COMPLETION, "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT).json()
    assert answer["choices"][0]["text"] == library["completion"]["text"]
