"""OpenAI's /v1/models, and /tokenizer_info."""

from __future__ import annotations

import pytest
from http_service import serving
from tiny_llama import tiny_llama

from llama.serving.http.token_texts import TokenNames


@pytest.mark.parametrize("kind", ["plain", "step"])
def test_a_model_says_what_it_is(kind: str) -> None:
    llama = tiny_llama(kind=kind)
    weights = sum(each.numel() for each in llama.model.state_dict().values())
    with serving(llama, model_name="org/tiny", strict_model=True) as server:
        (model,) = server.client.get("/v1/models").json()["data"]
        assert server.client.get("/v1/models/org/tiny").json() == model
        missing = server.client.get("/v1/models/other")
        refused = server.post("/v1/completions", {"model": "other"})
    assert (model["id"], model["object"], model["max_model_len"]) == ("org/tiny", "model", 128)
    assert model["meta"] == {
        "n_ctx": 128, "n_ctx_train": 128, "n_vocab": llama.tokenizer.n_words, "n_params": weights,
    }  # fmt: skip
    assert model["capabilities"] == {
        "infill": kind == "step",
        "chat_format": "step" if kind == "step" else "inst",
        "capability": "chat",
        "completion_fim": kind == "step",
        "completion_chat": True,
    }
    assert model["type"] == "base"
    for reply in (missing, refused):
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"


def test_a_model_without_the_pieces_refuses_a_suffix_with_the_reason() -> None:
    llama = tiny_llama(kind="plain")
    with serving(llama) as server:
        reply = server.post("/v1/completions", {"prompt": "a", "suffix": "b"})
        info = server.client.get("/tokenizer_info").json()
        schema = server.client.get("/openapi.json").json()
    assert reply.status_code == 400
    assert "fill in the middle" in reply.json()["error"]["message"]
    names = TokenNames(llama.tokenizer)
    assert info["bos_token"] == names[llama.tokenizer.bos_id]
    assert info["eos_token"] == names[llama.tokenizer.eos_id]
    # The schema names the parameter of the path, which no body has.
    (named,) = schema["paths"]["/v1/models/{model}"]["get"]["parameters"]
    assert (named["name"], named["in"]) == ("model", "path")
