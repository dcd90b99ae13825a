"""`LlamaLM`: a loaded model for lm-eval, as in `lm_eval.simple_evaluate(LlamaLM(llama), tasks=[...])`.

lm-eval's tasks ask for log-probabilities of texts (`loglikelihood`, `loglikelihood_rolling`) or for an answer up to
a string (`generate_until`). What a task asks goes to the engine together. Ids, windows and cuts are those of
lm-eval's own models, so that figures can be compared: a context and its continuation are encoded together, and what
is too long loses its beginning, with a warning.

Of several ranks all make the same call, as every call of `Llama`. lm-eval takes them for one process, and gives the
results to the first rank of each machine.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..api.options import Options, SamplingOptions
from ..distributed.environment import is_first_rank, log
from ..errors import EvaluationError, PromptTooLongError, UnsupportedError
from ..prompts import Message, Prompt, chat_prompt, completion_prompt, render_prompt
from ..terminal.progress import Progress
from .scoring import calls, prompt_scores

try:
    from lm_eval.api.model import LM
except ModuleNotFoundError:  # then there is nobody who could ask
    LM = object

if TYPE_CHECKING:
    from ..engine import Request, TokenScore
    from ..generation import Llama

__all__ = ["LlamaLM"]

# New tokens of an answer whose task sets no limit; lm-eval's own models take the same.
_MAX_GEN_TOKS = 256
# Names of that limit; the first that is there counts.
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What else a task may set: names of transformers that mean the same here.
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")


class LlamaLM(LM):  # type: ignore[misc]
    """A model as lm-eval asks it (0.4.13 was tested).

    Args:
        llama: on every rank of the launch.
        name: of the model, for the results; by default its folder's.
    """

    def __init__(self, llama: Llama, name: str | None = None) -> None:
        super().__init__()
        self.llama = llama
        self.name = name or ("llama" if llama.folder is None else llama.folder.resolve().name)
        # Dialogs by how they read: lm-eval hands texts around, and the ids between two turns have no text.
        self._dialogs: dict[str, Prompt] = {}
        self._nonce = secrets.token_hex(8)

    # ---- what tasks ask ------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation) the continuation's log-probability, and whether it is the greedy one.

        An empty context is bos alone.

        Raises:
            PromptTooLongError: a continuation that fills the model's context alone.
            LlamaError: as `Llama.text_completion`.
        """
        asked = [request.args for request in requests]
        found = []
        for args, result in zip(
            asked, self._scored([self._pair(*args) for args in asked], disable_tqdm), strict=True
        ):
            self._remember("loglikelihood", args, result)
            found.append(result)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """For each (text,) its log-probability after bos.

        A long text is cut into windows of the context's length, each with one token of the last; the very last is
        filled up with what is before it. `scoring.score` lets them overlap by half, which is closer to the truth.

        Raises: as `loglikelihood`.
        """
        tokenizer = self.llama.tokenizer
        texts = [request.args[0] for request in requests]
        windows = [
            list(_rolling(tokenizer.encode(text, bos=False, eos=False), tokenizer.bos_id, self._longest))
            for text in texts
        ]
        scores = self._scored([window for each in windows for window in each], disable_tqdm)
        found = []
        for text, each in zip(texts, windows, strict=True):
            total = math.fsum(next(scores)[0] for _ in each)
            self._remember("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """For each (context, settings) what the model writes after it, up to a string of `until` or the limit.

        Settings, all optional: until, max_gen_toks (256), do_sample, temperature, top_p, top_k, min_p,
        repetition_penalty. Without do_sample or temperature the likeliest token is taken. The first space of an
        answer is kept: context + answer is the whole text.

        Raises:
            EvaluationError: another setting, or a limit that leaves no room for the context.
            LlamaError: as `Llama.text_completion`.
        """
        asked = [request.args for request in requests]
        texts = [""] * len(asked)
        if not asked:
            return texts
        progress = self._progress(len(asked), disable_tqdm)
        with closing(cast(Any, self.llama.session.stream(self._requests(asked)))) as deltas:
            for delta in deltas:
                texts[delta.index] += delta.text
                if delta.finish_reason is not None:
                    self._remember("generate_until", asked[delta.index], texts[delta.index])
                    progress.advance()
        progress.clear()
        return texts

    # ---- dialogs -------------------------------------------------------------------------------------------

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialog in the vocabulary's chat format, as a text that stands for its ids in later requests.

        Args:
            add_generation_prompt: False if the last message is the beginning of the answer.

        Raises:
            DialogError, UnsafeTagError: as `Llama.chat_completion`.
            UnsupportedError: the beginning of an answer in the <step> format.
        """
        tokenizer, messages, begun = self.llama.tokenizer, [*chat_history], ""
        if not add_generation_prompt:
            begun = messages.pop()["content"].strip()
        prompt = chat_prompt(tokenizer, cast(list[Message], messages))
        if begun and tokenizer.step_id is not None:
            raise UnsupportedError(
                "the task begins the answer itself (gen_prefix), which the <step> format has no form for"
            )
        if begun:
            tokens = (*prompt.tokens, *tokenizer.encode_infilling(" " + begun))
            prompt = Prompt(tokens, prompt.stop_ids, start_of_text=False)
        text = render_prompt(tokenizer, prompt.tokens)
        self._dialogs[text] = prompt
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The chat format's name, for the results; there is one, and the vocabulary decides which."""
        return "[INST]" if self.llama.tokenizer.step_id is None else "<step>"

    @property
    def tokenizer_name(self) -> str:
        """For lm-eval's cache of requests. Dialogs are known to this object only, so no other run may share it."""
        return f"{self.name}-{self._nonce}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the settings."""
        model = self.llama.model
        return {"model_name": self.name, "model_dtype": str(model.dtype), "max_length": self._longest}

    # ---- to the engine and back ----------------------------------------------------------------------------

    @property
    def _longest(self) -> int:
        """lm-eval's length of a context: the tokens that come before another one."""
        return self.llama.model.params.max_seq_len - 1

    def _pair(self, context: str, continuation: str) -> _Pair:
        """A context and its continuation as ids. Blanks at the context's end belong to the continuation."""
        tokenizer = self.llama.tokenizer
        dialog = self._dialog(context)
        if dialog is not None:
            return _Pair(dialog.tokens, tuple(tokenizer.encode_infilling(continuation)))
        kept = context.rstrip()
        whole = tuple(tokenizer.encode(context + continuation, bos=True, eos=False))
        first = len(tokenizer.encode(kept, bos=True, eos=False))
        if first >= len(whole) and kept != context + continuation:
            first = len(whole) - 1  # its end became one piece with the continuation
        return _Pair(whole[:first], whole[first:])

    def _scored(self, pairs: Sequence[_Pair], disable_tqdm: bool) -> Iterator[tuple[float, bool]]:
        """Of each pair the sum over the continuation, and whether every token of it is the likeliest."""
        most = self._longest + 1
        for pair in pairs:
            if len(pair.continuation) >= most:
                raise PromptTooLongError(
                    f"a continuation has {len(pair.continuation):,} tokens, but max_seq_len is {most:,}, with at least"
                    " one before it; build with a larger max_seq_len"
                )
        self._tell_cuts(sum(len(pair.ids) > most for pair in pairs), len(pairs), most)
        progress = self._progress(len(pairs), disable_tqdm)
        for call in calls(pairs, lambda pair: len(pair.ids)):
            for pair, scores in zip(
                call, prompt_scores(self.llama, [pair.ids[-most:] for pair in call], top=1), strict=True
            ):
                yield _summed(pair.continuation, scores[len(scores) - len(pair.continuation) :])
                progress.advance()
        progress.clear()

    def _requests(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Request]:
        """The requests of `generate_until`; those with the same settings share one draw of a seed."""
        rows_of: dict[str, list[int]] = {}
        for row, (_, settings) in enumerate(asked):
            rows_of.setdefault(repr(sorted(settings.items())), []).append(row)
        made: list[Request] = []
        cut = 0
        for rows in rows_of.values():
            call = _options(asked[rows[0]][1])
            room = self._longest + 1 - (call.max_gen_len or 0)
            if room < 1:
                raise EvaluationError(
                    f"max_gen_toks is {call.max_gen_len:,}, but max_seq_len is {self._longest + 1:,} for context and"
                    " answer together; build with a larger one, or set a smaller limit (gen_kwargs)"
                )
            prompts = [self._prompt(asked[row][0]) for row in rows]
            cut += sum(len(prompt.tokens) > room for prompt in prompts)
            prompts = [Prompt(each.tokens[-room:], each.stop_ids, each.start_of_text) for each in prompts]
            made += self.llama.session.requests(prompts, call, rows, len(asked), streaming=False)
        self._tell_cuts(cut, len(asked), self._longest + 1)
        return made

    def _prompt(self, context: str) -> Prompt:
        return self._dialog(context) or completion_prompt(self.llama.tokenizer, context)

    def _dialog(self, context: str) -> Prompt | None:
        """The dialog that a context stands for, if it is one."""
        found = self._dialogs.get(context)
        if found is None and self._dialogs and context.startswith("⟨bos⟩"):
            raise EvaluationError(
                "a context is a dialog that this LlamaLM has not made; is it from a cache (cache_requests)?"
            )
        return found

    def _remember(self, kind: str, args: Any, result: Any) -> None:
        """Tell lm-eval's cache of answers, so that an interrupted run keeps what it has."""
        hook = getattr(self, "cache_hook", None)
        if hook is not None:
            hook.add_partial(kind, args, result)

    def _progress(self, total: int, disable_tqdm: bool) -> Progress:
        return Progress(total, 0, speaks=is_first_rank() and not disable_tqdm)

    def _tell_cuts(self, cut: int, of: int, most: int) -> None:
        if cut:
            log(f"warning: {cut:,} of {of:,} requests do not fit {most:,} tokens, and lost their beginning")


class _Pair(NamedTuple):
    """Ids of a context and of what follows it."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return self.context + self.continuation


def _rolling(ids: Sequence[int], bos_id: int, longest: int) -> Iterator[_Pair]:
    """lm-eval's windows (`get_rolling_token_windows` with a context of one token)."""
    end = min(longest, len(ids))
    if end:
        yield _Pair((bos_id,), tuple(ids[:end]))
    while end < len(ids):
        begin, end = end, min(end + longest, len(ids))
        yield _Pair(tuple(ids[end - longest - 1 : begin]), tuple(ids[begin:end]))


def _summed(continuation: Sequence[int], scores: Sequence[TokenScore]) -> tuple[float, bool]:
    likeliest = [score.top[0][0] for score in scores]
    return math.fsum(score.logprob for score in scores), likeliest == list(continuation)


def _options(settings: Mapping[str, Any]) -> Options:
    """A task's generation_kwargs as ours.

    Raises:
        EvaluationError: one that has no meaning here.
        SamplingError: a value out of range.
    """
    left = dict(settings)
    until = left.pop("until", None) or ()
    stops = [until] if isinstance(until, str) else [text for text in until if text]
    limits = [left.pop(name, None) for name in _LIMITS]
    limit = next((int(each) for each in limits if each is not None), _MAX_GEN_TOKS)
    temperature = float(left.pop("temperature", None) or 0.0)
    do_sample = left.pop("do_sample", None)
    if do_sample is not None and not do_sample:
        temperature = 0.0
    if left.get("num_beams") == 1:
        del left["num_beams"]
    more = {name: left.pop(name) for name in _SAMPLING if name in left}
    if left:
        known = ", ".join(("until", "max_gen_toks", "do_sample", "temperature", *_SAMPLING))
        raise EvaluationError(
            f"the task sets {sorted(left)[0]!r} for its answers, which has no meaning here; known are {known}"
        )
    top_p = more.pop("top_p", 1.0)
    return Options.of(temperature, top_p, limit, False, False, cast(SamplingOptions, {**more, "stop": stops}))
