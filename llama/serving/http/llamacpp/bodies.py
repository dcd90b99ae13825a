"""The bodies of llama.cpp's /completion and /infill, and what their sampling fields ask of the engine.

llama.cpp applies its samplers in the order of `samplers`, and none that is not listed. Here the list says
which are applied; their order is the engine's.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, WithJsonSchema, field_validator

from ....api.options import SamplingOptions
from ....tokenizer import Tokenizer
from .. import other_samplers
from ..bodies import Body, Int, Texts
from ..problems import Problem

__all__ = ["ExtraChunk", "GenerationBody", "LlamaCppCompletionBody", "LlamaCppInfillBody", "sampling"]

_RANDOM_SEEDS = (-1, 0xFFFFFFFF)  # llama.cpp's default, and the same as an unsigned number
# The engine's bounds of a bias; the least rules a token out. llama.cpp has none.
_RULED_OUT, _MOST_BIAS = -100.0, 100.0
# Several middles of one hole are of use only if they differ.
_SEVERAL_MIDDLES = 0.6

# llama.cpp's names of samplers, with the letters that also stand for them, and names of older versions. Those
# without a field here do nothing, since their fields must be neutral.
_LETTERS = {
    "d": "dry",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "s": "top_n_sigma",
    "m": "min_p",
    "t": "temperature",
    "x": "xtc",
    "i": "infill",
    "e": "penalties",
    "a": "adaptive_p",
}
_OLD_NAMES = {"top-k": "top_k", "top-p": "top_p", "nucleus": "top_p", "min-p": "min_p", "temp": "temperature"}
_SAMPLERS = {
    **{name: name for name in (*_LETTERS.values(), "typical_p", "typical", "tfs_z", "mirostat")},
    **_OLD_NAMES,
}
_N_PREDICT = AliasChoices("n_predict", "max_tokens", "max_completion_tokens")
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "array", "items": {}}],
            },
        },
    ]
}


class GenerationBody(Body):
    """The fields that /completion and /infill share. Durations are in milliseconds."""

    model: str | None = None
    n_predict: Int = Field(-1, ge=-2, validation_alias=_N_PREDICT)
    n_cmpl: Int = Field(1, ge=1, validation_alias=AliasChoices("n_cmpl", "n"))
    n_indent: Int = Field(0, ge=0)
    t_max_predict_ms: float = 0
    stop: Texts = Field(default_factory=list)
    stream: bool = False
    samplers: str | list[str] | None = None
    temperature: float | None = None
    top_k: Int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: Int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: list[list[Any]] | dict[str, Any] = Field(default_factory=list)
    ignore_eos: bool = False
    seed: Int = Field(-1, ge=-1)
    n_probs: Int = Field(0, ge=0)
    return_tokens: bool = False
    timings_per_token: bool = False
    response_fields: list[str] | None = None

    INERT = frozenset(
        {
            # Which slot and cache: the engine finds a common beginning wherever it was computed.
            *("id_slot", "slot_id", "cache_prompt", "n_cache_reuse", "n_keep", "n_discard"),
            *("t_max_prompt_ms", "sse_ping_interval", "backend_sampling", "verbose", "user", "api_key"),
            *other_samplers.PARAMETERS,
            # Parameters of grammars and of drafting.
            "preserved_tokens",
            *("speculative.n_max", "speculative.n_min", "speculative.p_min", "speculative.type"),
        }
    )
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {
        **other_samplers.OFF,
        "grammar": ("",),
        "json_schema": (),
        "grammar_lazy": (False,),
        "grammar_triggers": ([],),
        "post_sampling_probs": (False,),
        "return_progress": (False,),
        "lora": ([],),
        "image_data": ([],),
        "multimodal_data": ([],),
    }

    @field_validator("samplers")
    @classmethod
    def _named(cls, given: str | list[str] | None) -> list[str] | None:
        """Samplers by their names; a text has a letter for each."""
        if given is None:
            return None
        names = _LETTERS if isinstance(given, str) else _SAMPLERS
        unknown = [each for each in given if each not in names]
        if unknown:
            raise ValueError(f"there is no sampler {unknown[0]!r}; known are {', '.join(_LETTERS.values())}")
        return [names[each] for each in given]

    @property
    def discards(self) -> bool:
        """Whether the answer is to be empty: the prompt is only put into the cache."""
        return self.n_predict == 0

    @property
    def max_tokens(self) -> int | None:
        """Most tokens to run; None for as many as there is room. One, which is thrown away, for none: without
        a token to draw the engine computes nothing, so the cache would stay empty."""
        return None if self.n_predict < 0 else max(1, self.n_predict)


class LlamaCppCompletionBody(GenerationBody):
    """The body of /completion: one prompt (text, ids, or both mixed), or a list of them."""

    prompt: Annotated[str | list[Any], WithJsonSchema(_PROMPT_SCHEMA)]


class ExtraChunk(Body):
    """A piece of another file. Only its text counts; `time` is a list in Vim and a number in VS Code."""

    text: str
    filename: str | None = None
    time: Any = None
    firstLine: Any = None  # noqa: N815 - llama.vscode's name
    lastLine: Any = None  # noqa: N815


class LlamaCppInfillBody(GenerationBody):
    """The body of /infill. `prompt` is the text between input_prefix and the cursor."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[ExtraChunk] = Field(default_factory=list)
    prompt: str = ""


def sampling(body: GenerationBody, tokenizer: Tokenizer) -> dict[str, Any]:
    """Keywords for `Service.requests`: how many tokens, and how each is drawn.

    Raises:
        Problem: 400, a logit_bias of another form.
    """
    listed = body.samplers
    options: SamplingOptions = {
        "top_k": max(0, body.top_k) if _on(listed, "top_k") else 0,
        "min_p": body.min_p if _on(listed, "min_p") else 0.0,
        "n": body.n_cmpl,
        "stop": [text for text in body.stop if text],
        "logit_bias": _logit_bias(body.logit_bias, tokenizer),
        "ignore_eos": body.ignore_eos,
    }
    if body.repeat_last_n != 0 and _on(listed, "penalties"):
        options["repetition_penalty"] = body.repeat_penalty
        options["presence_penalty"] = body.presence_penalty
        options["frequency_penalty"] = body.frequency_penalty
    return {
        "temperature": temperature(body),
        "top_p": body.top_p if _on(listed, "top_p") else 1.0,
        "max_tokens": body.max_tokens,
        "logprobs": body.n_probs,
        "seed": None if body.seed in _RANDOM_SEEDS else body.seed,
        **options,
    }


def temperature(body: GenerationBody) -> float:
    """The temperature that a body asks for; 0 is greedy, as is anything below in llama.cpp.

    llama.cpp's sampler `infill` is near greedy, and clients that list it send no temperature.
    """
    if body.discards:
        return 0.0
    if body.samplers is not None and "temperature" not in body.samplers:
        if "infill" not in body.samplers:
            return 1.0
        if body.temperature is None:
            return 0.0 if body.n_cmpl == 1 else _SEVERAL_MIDDLES
    return 0.8 if body.temperature is None else max(0.0, body.temperature)


def _on(listed: str | list[str] | None, name: str) -> bool:
    return listed is None or name in listed


def _logit_bias(given: list[list[Any]] | dict[str, Any], tokenizer: Tokenizer) -> dict[int, float]:
    """Biases by id, from [[id or text, number or false], ...] or {"id or text": number or false}.

    A text stands for each of its ids; false bans them.
    """
    pairs = [list(pair) for pair in given.items()] if isinstance(given, dict) else given
    biases: dict[int, float] = {}
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise _bad_bias(i, "it must be a pair of an id or a text and a number or false")
        key, value = pair
        if isinstance(given, dict) and key.isascii() and key.isdecimal() and len(key) < 20:
            key = int(key)
        if value is not False and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _bad_bias(i, "the bias must be a number, or false for a token that must not be drawn")
        if isinstance(key, str):
            ids = tokenizer.encode(key, bos=False, eos=False)
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < tokenizer.n_words:
            ids = [key]
        else:
            raise _bad_bias(i, f"a token must be a text or an id from 0 to {tokenizer.n_words - 1}")
        biases.update(dict.fromkeys(ids, _RULED_OUT if value is False else _within(value)))
    return biases


def _within(bias: float) -> float:
    return float(max(_RULED_OUT, min(_MOST_BIAS, bias)))


def _bad_bias(i: int, why: str) -> Problem:
    return Problem(400, "invalid_request", f"logit_bias.{i}: {why}", f"logit_bias.{i}")
