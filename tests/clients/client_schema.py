"""schemathesis: requests made from /openapi.json, right ones and wrong ones. None may end in a 5xx.

Without a clock: it counts requests, and the same are made in every run.
"""

from __future__ import annotations

import json
from collections import Counter

import httpx
import pytest
import schemathesis
from asked import COMPLETION, TOKENS
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from server_process import LIMIT

# Requests for each route.
EXAMPLES = 25


@pytest.fixture(scope="module")
def schema(url: str):
    loaded = schemathesis.openapi.from_url(f"{url}/openapi.json")
    loaded.config.generation.update(modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    return loaded


lazy = schemathesis.pytest.from_fixture("schema")
statuses: Counter[int] = Counter()


@lazy.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_ends_in_a_server_error(case, url) -> None:
    if isinstance(case.body, dict):
        # An answer may be as long as it likes, but not in this test.
        for name in ("max_tokens", "max_completion_tokens", "n_predict"):
            if isinstance(case.body.get(name), int) and case.body[name] > TOKENS:
                case.body[name] = TOKENS
    answer = case.call(base_url=url, timeout=LIMIT)
    statuses[answer.status_code] += 1
    assert answer.status_code < 500, (answer.status_code, answer.text[:500])
    if answer.status_code >= 400 and answer.content and case.method != "HEAD":
        assert "error" in json.loads(answer.content), answer.text[:500]


def test_requests_were_made_that_succeed_and_that_fail() -> None:
    assert statuses[200] > 20
    assert statuses[400] + statuses[422] > 20


def test_the_server_still_answers(url, library) -> None:
    body = {"prompt": COMPLETION, "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT).json()
    assert answer["choices"][0]["text"] == library["completion"]["text"]
