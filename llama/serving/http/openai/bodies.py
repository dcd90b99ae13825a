"""Fields that both OpenAI routes take: OpenAI's, those of other servers that clients send here too, and what
they ask of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from ....engine.request import MOST_SAMPLES
from ....prompts import Prompt
from .. import other_samplers
from ..bodies import Body, Int, Json, Texts, seed_of
from ..problems import Problem
from ..service import Service

__all__ = ["SamplingBody", "flattened"]


def _text_format(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "text":
        return value
    kind = value.get("type") if isinstance(value, dict) else value
    raise PydanticCustomError(
        "response_format", "only the type 'text' is supported, not {kind}", {"kind": repr(kind)}
    )


class OpenAIStreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Without effect.")
    continuous_usage_stats: Literal[False] | None = None


class SamplingBody(Body):
    """Sampling, limits, and how the answer is told.

    Names that mean the same: max_tokens, max_completion_tokens, n_predict; repetition_penalty,
    repeat_penalty.
    """

    INERT: ClassVar[frozenset[str]] = frozenset(
        (
            *("user", "metadata", "store", "request_id", "priority", "service_tier", "safety_identifier"),
            *("prompt_cache_key", "prompt_cache_retention", "keep_alive"),
            *("cache_prompt", "id_slot", "samplers", "t_max_prompt_ms", "t_max_predict_ms", "repeat_last_n"),
            "spaces_between_special_tokens",
            *other_samplers.PARAMETERS,
        )
    )
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_beam_search": (False,),
        "length_penalty": (1,),
        "early_stopping": (False,),
        "bad_words": ([],),
        "logits_processors": ([],),
        "lora": ([],),
        "include_stop_str_in_output": (False,),
        "skip_special_tokens": (True,),
        "truncate_prompt_tokens": (),
        "prompt_logprobs": (),
        "grammar": ("",),
        "timings_per_token": (False,),
        "return_progress": (False,),
        **other_samplers.OFF,
    }

    model: str | None = None
    max_tokens: Int | None = Field(None, ge=-1, description="-1: as many as there is room for.")
    max_completion_tokens: Int | None = Field(None, ge=-1)
    n_predict: Int | None = Field(None, ge=-1)
    temperature: float | None = Field(None, ge=0)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: Int = Field(0, ge=-1, description="0, -1: all.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    repeat_penalty: float | None = Field(None, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, float] = Field(default_factory=dict)
    n: Int = Field(1, ge=1, le=MOST_SAMPLES)
    stop: Texts = Field(default_factory=list)
    stop_token_ids: list[Int] = Field(default_factory=list)
    seed: Int | None = None
    min_tokens: Int = Field(0, ge=0)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: OpenAIStreamOptions | None = None
    return_token_ids: bool = False
    response_format: Annotated[Json, BeforeValidator(_text_format)] | None = None
    options: Json | None = Field(None, description="Ollama's: the same fields once more, and num_predict.")

    def limit(self, default: int | None) -> int | None:
        """Most tokens to generate; None for as many as there is room for."""
        most = self.one_of("max_completion_tokens", "max_tokens", "n_predict")
        if most is None:
            return default
        return None if most == -1 else int(most)

    def chosen_temperature(self, service: Service, prompts: Sequence[Prompt]) -> float:
        """As given, else 1; but 0 if all prompts are infillings."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if all(map(service.infills, prompts)) else 1.0

    def sampling(self) -> dict[str, Any]:
        """Keywords of `Service.requests`, all but temperature and max_tokens."""
        penalty = self.one_of("repetition_penalty", "repeat_penalty")
        told: dict[str, Any] = {
            "top_p": self.top_p,
            "top_k": max(0, self.top_k),
            "min_p": self.min_p,
            "repetition_penalty": 1.0 if penalty is None else penalty,
            "stop": self.stop,
            "stop_ids": self.stop_token_ids,
            "seed": seed_of(self.seed),
        }
        more = {
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self._bias(),
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
        }
        return told | {name: value for name, value in more.items() if value}

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _bias(self) -> dict[int, float]:
        bias = {}
        for name, value in self.logit_bias.items():
            if not (name.isascii() and name.isdecimal() and len(name) < 16):
                message = f"logit_bias has the key {name[:40]!r}; its keys are token ids"
                raise Problem(400, "invalid_request", message, "logit_bias")
            bias[int(name)] = value
        return bias


def flattened(data: Json) -> Json:
    """A body whose `options`, as Ollama's clients send them, stand beside the other fields, which win.

    Raises:
        Problem: they hold options themselves.
    """
    options = data.get("options")
    if not isinstance(options, dict):
        return data
    if "options" in options:
        raise Problem(400, "unknown_field", "options holds options", "options.options")
    moved = {
        "n_predict" if name == "num_predict" else str(name): value
        for name, value in options.items()
        if name != "num_ctx"
    }
    kept = {name: value for name, value in data.items() if name != "options" and value is not None}
    if {"max_tokens", "max_completion_tokens"} & set(kept):
        moved.pop("n_predict", None)
    return {**moved, **kept}
