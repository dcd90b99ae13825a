"""`Llama`: the reference's calls, each a fold over the engine's one loop.

A call turns texts into prompts (prompts.py), prompts into requests, and what the engine yields into
the reference's dictionaries. Every rank makes the same call and gets the same result.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from . import loading as builder
from .api.compat import dialog_prompt_tokens, infilling_prompt_tokens, sample_top_p
from .api.options import (
    NOTHING,
    ChatPrediction,
    CompletionPrediction,
    InfillingPrediction,
    Logprobs,
    Options,
    Output,
    SamplingOptions,
    Seeds,
    StreamDelta,
    alternatives,
    check_integer,
    check_length,
    check_seed,
    id_lists,
    listed,
    numbered,
    text_list,
)
from .api.replicas import first_of
from .api.session import Session
from .distributed.world import leave
from .engine import Engine, Request
from .errors import RequestError, UnsafeTagError
from .model import Transformer
from .prompts import (
    B_INST,
    B_SYS,
    E_INST,
    E_SYS,
    SPECIAL_TAGS,
    UNSAFE_ERROR,
    Dialog,
    Message,
    Prompt,
    Role,
    chat_prompt,
    completion_prompt,
    infilling_prompt,
    split_fill,
)
from .serving import AsyncEngine, serve
from .sizing.budget import CacheMemory
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

__all__ = [
    "B_INST",
    "B_SYS",
    "E_INST",
    "E_SYS",
    "SPECIAL_TAGS",
    "UNSAFE_ERROR",
    "ChatPrediction",
    "CompletionPrediction",
    "Dialog",
    "InfillingPrediction",
    "Llama",
    "Message",
    "Role",
    "StreamDelta",
    "dialog_prompt_tokens",
    "infilling_prompt_tokens",
    "sample_top_p",
]


class Llama:
    """A loaded model with its tokenizer and engine.

    Use `Llama.build`; `Llama(model, tokenizer)` wraps a Transformer that is already there. As a
    context manager, or with `close`, it gives its process groups back before the program ends.

    Args:
        model: its params carry max_seq_len and max_batch_size.
        tokenizer: of the same vocabulary.
        cache_tokens: positions that all sequences may hold together, running and retained; None for as
            many as the two limits allow.
        retained_tokens: positions of these that may be kept for reuse; None for a quarter, and at least
            max_seq_len.
        seed: makes calls without a seed of their own repeat from one run of the program to the next; None draws
            theirs from torch's CPU generator.
    """

    @staticmethod
    def build(
        ckpt_dir: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str] | None = None,
        max_seq_len: int = 4096,
        max_batch_size: int = 32,
        model_parallel_size: int | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        seed: int | None = None,
        cache_memory: CacheMemory | None = None,
        prefix_reuse: bool = True,
    ) -> Llama:
        """Load a checkpoint, of any number of shards, onto the ranks of this launch.

        Args:
            ckpt_dir: folder in Meta's layout (consolidated.NN.pth, params.json) or Hugging Face's
                (config.json, *.safetensors or pytorch_model*.bin), as it is.
            tokenizer_path: by default tokenizer.model in ckpt_dir.
            max_seq_len, max_batch_size: limits of a sequence's tokens and of sequences that run at the
                same time. Memory follows the tokens in use, not these.
            model_parallel_size: ranks that hold one model; by default all of the launch. With fewer,
                the launch holds several replicas that share out a call's prompts.
            device: auto (cuda, then mps, then cpu) or a device's name.
            dtype: auto (as stored, where the device computes well in it), bfloat16, float16, float32.
            seed: for sampling in calls that have no seed of their own. None: each of them that samples draws one
                from torch's CPU generator, so that a program repeats under `torch.manual_seed`.
            cache_memory: of each rank, for keys and values: bytes (an integer, or "4GiB") or a share of
                what is free beside the weights (a float in (0, 1], or "50%"). By default what the two
                limits allow, and at most a quarter of what is free for prefixes to use again.
            prefix_reuse: keep what was computed until its memory is needed, and use it for prompts that begin alike.

        Raises:
            CheckpointError: files missing, broken, or not fitting together.
            ConfigError: a parameter or params.json out of range; something in config.json that this
                runtime does not do.
            ParallelismError: ranks that heads or devices do not allow.
            TokenizerError: a tokenizer file that cannot be used.
            SamplingError: seed is no non-negative integer.
            OutOfMemoryError: weights and cache do not fit.
        """
        if seed is not None:
            seed = check_seed(seed)  # before minutes of loading
        built = builder.build(
            ckpt_dir,
            tokenizer_path,
            max_seq_len,
            max_batch_size,
            model_parallel_size,
            device,
            dtype,
            cache_memory=cache_memory,
        )
        llama = Llama(
            built.model,
            built.tokenizer,
            cache_tokens=built.cache_tokens,
            retained_tokens=built.retained_tokens,
            prefix_reuse=prefix_reuse,
            seed=seed,
        )
        llama._joined = True
        return llama

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        cache_tokens: int | None = None,
        retained_tokens: int | None = None,
        prefix_reuse: bool = True,
        seed: int | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.engine = Engine(
            model,
            tokenizer,
            cache_tokens=cache_tokens,
            retained_tokens=retained_tokens,
            prefix_reuse=prefix_reuse,
        )
        self._calls = Session(self.engine, Seeds(seed, partial(first_of, model.parallel, model.device)))
        self._joined = False

    def close(self, error: BaseException | None = None) -> None:
        """Give back the process groups that `build` joined. All ranks call it; twice is fine.

        Args:
            error: what ends the use of this model early, if anything does: a rank that failed alone
                does not wait for the others.
        """
        if self._joined:
            self._joined = False
            leave(self.model.parallel, error)

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    # ---- the reference's calls -------------------------------------------------------------------

    def generate(
        self,
        prompt_tokens: Iterable[Iterable[int]],
        max_gen_len: int | None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: Logprobs = False,
        echo: bool = False,
        stop_token: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continue lists of ids.

        Args:
            max_gen_len: tokens to add at most; None for as many as max_seq_len leaves room for.
            echo: return the prompt's ids, and scores, in front.
            stop_token: ends a sequence and is not returned; by default eos.
            options: see `text_completion`.

        Returns:
            ids, and with `logprobs` the log-probability of each under the model (0 for a prompt's
            first), else None. With n > 1, a prompt's samples stand one behind the other.
        """
        last = self.tokenizer.eos_id if stop_token is None else stop_token
        stops = frozenset({check_integer("stop_token", last, 0)})
        prompts = [
            Prompt(ids, stops, start_of_text=False) for ids in id_lists("prompt_tokens", prompt_tokens)
        ]
        call = Options.of(temperature, top_p, max_gen_len, logprobs, echo, options)
        outputs = self._calls.run(prompts, call)
        ids = [call.tokens(output) for output in outputs]
        return ids, [call.logprobs_of(output) for output in outputs] if call.scored else None

    def text_completion(
        self,
        prompts: Iterable[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: Logprobs = False,
        echo: bool = False,
        *,
        allow_control: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[CompletionPrediction]:
        """Continue texts. `prompt + generation` is the true text: its first space is kept.

        Args:
            prompts: any texts, in a list, an array, a generator; control pieces written out in them are text, unless
                `allow_control`. Numbers, here and below, may be numpy's.
            temperature: 0 is greedy.
            top_p: nucleus, in [0, 1]; 0 is greedy.
            max_gen_len: tokens to add at most; None for as many as max_seq_len leaves room for.
            logprobs: True for tokens and their log-probabilities, a number for that many alternatives too.
            echo: return the prompt in front; with max_gen_len=0 and logprobs, this scores a text.
            options: top_k, min_p, repetition_penalty (see `SamplingParams`); stop, a string or several
                that end the text and are cut off (at most 64, of 8,192 characters together); stop_ids, further ids
                that end it; seed, an integer, or one for each prompt (without it, and without one of `build`, torch's
                CPU generator gives one: one draw a call, none where nothing is sampled); n, samples for each prompt,
                at most 4,096, one behind the other in the result;
                prediction, text that the output is likely to repeat (the file before an edit), or one for
                each prompt: it makes the call faster where it is right and never changes the result;
                speculate=False switches that and lookup in the prompt off.

        Returns: for each sample generation, finish_reason (stop, length, stop_sequence), and with
            logprobs tokens, logprobs and, for a number, top_logprobs.

        Raises:
            RequestError: parameters or prompts out of range; nothing was generated.
            NumericsError: logits that are not finite.
            RankError: with several ranks, one that failed, is gone, or does not make the same call.
        """
        texts = text_list("prompts", prompts)
        call = Options.of(temperature, top_p, max_gen_len, logprobs, echo, options)
        prompts_made = numbered(
            lambda text: completion_prompt(self.tokenizer, *self._short(text), allow_control=allow_control),
            texts,
        )
        outputs = self._calls.run(prompts_made, call)
        results: list[CompletionPrediction] = []
        for i, output in enumerate(outputs):
            before = texts[i // call.n] if echo else ""
            result: CompletionPrediction = {
                "generation": before + output.text,
                "finish_reason": output.finish_reason,
            }
            results.append(self._scored(result, output, call))
        return results

    def text_infilling(
        self,
        prefixes: Iterable[str],
        suffixes: Iterable[str] | None = None,
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: Logprobs = False,
        suffix_first: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[InfillingPrediction]:
        """Fill between prefixes and suffixes; `full_text` is prefix + generation + suffix.

        Args:
            suffixes: as many as prefixes. None: each prefix holds one <FILL> or <FILL_ME> instead.
            suffix_first: the suffix-prefix-middle order of the prompt.
            The rest as in `text_completion`.

        Raises:
            UnsupportedError: the vocabulary has no infilling pieces. Else as `text_completion`.
        """
        before = text_list("prefixes", prefixes)
        if suffixes is None:
            pairs = numbered(split_fill, before)
        else:
            after = text_list("suffixes", suffixes)
            if len(before) != len(after):
                raise RequestError(f"{len(before)} prefixes, but {len(after)} suffixes; give one for each")
            pairs = list(zip(before, after, strict=True))
        call = Options.of(temperature, top_p, max_gen_len, logprobs, False, options)
        prompts = numbered(
            lambda pair: infilling_prompt(self.tokenizer, *self._short(*pair), suffix_first=suffix_first),
            pairs,
        )
        results: list[InfillingPrediction] = []
        for i, output in enumerate(self._calls.run(prompts, call)):
            prefix, suffix = pairs[i // call.n]
            result: InfillingPrediction = {
                "generation": output.text,
                "full_text": prefix + output.text + suffix,
                "finish_reason": output.finish_reason,
            }
            results.append(self._scored(result, output, call))
        return results

    def chat_completion(
        self,
        dialogs: Iterable[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: Logprobs = False,
        **options: Unpack[SamplingOptions],
    ) -> list[ChatPrediction]:
        """Answer dialogs in the chat format of the vocabulary: [INST], or Source/Destination where it has <step>.

        A dialog that holds a tag of that format is answered with the reference's error text, without
        running the model; finish_reason is "error" and `error` names tag and message.

        Args: as in `text_completion`.

        Raises:
            DialogError: roles, or an order, that the format does not know. Else as `text_completion`.
        """
        asked = listed("dialogs", dialogs, "lists of messages")
        call = Options.of(temperature, top_p, max_gen_len, logprobs, False, options)

        def made(dialog: Dialog) -> Prompt | UnsafeTagError:
            try:
                if isinstance(dialog, list | tuple):
                    self._short(*(each.get("content") for each in dialog if isinstance(each, dict)))
                return chat_prompt(self.tokenizer, dialog)
            except UnsafeTagError as error:
                return error

        prompts = numbered(made, asked)
        safe = {row: prompt for row, prompt in enumerate(prompts) if isinstance(prompt, Prompt)}
        if safe or not prompts:
            outputs = iter(self._calls.run(list(safe.values()), call, list(safe), len(prompts)))
        else:
            outputs = iter(())
        results: list[ChatPrediction] = []
        for prompt in prompts:
            for _ in range(call.n):
                if isinstance(prompt, UnsafeTagError):
                    refused: ChatPrediction = {
                        "generation": self._answer(UNSAFE_ERROR),
                        "finish_reason": "error",
                        "error": str(prompt),
                    }
                    results.append(self._scored(refused, NOTHING, call))
                    continue
                output = next(outputs)
                result: ChatPrediction = {
                    "generation": self._answer(output.text),
                    "finish_reason": output.finish_reason,
                }
                results.append(self._scored(result, output, call))
        return results

    def _short(self, *texts: Any) -> Any:
        """The texts of a prompt, which together may still fit."""
        check_length(self.tokenizer, self.model.params.max_seq_len, *texts)
        return texts

    def _answer(self, content: str) -> Message:
        """The message that the chat format expects back: the 70B one says to whom it goes."""
        if self.tokenizer.step_id is None:
            return {"role": "assistant", "content": content}
        return {"role": "assistant", "destination": "user", "content": content}

    def stream(
        self,
        prompts: Iterable[str | Prompt],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[StreamDelta]:
        """Continue texts, or prompts made by prompts.py, and yield what is new as it comes.

        The joined text of a prompt's deltas is the `generation` of the blocking call. Bad input raises
        here, not at the first delta. Leaving the loop early ends the generation. On several ranks close it then, with
        `contextlib.closing` or its `close`: when Python would clear it away may differ between them.
        """
        requests = self.requests(prompts, temperature, top_p, max_gen_len, **options)
        return self._calls.stream([(request.row, request) for request in requests])

    def requests(
        self,
        prompts: Iterable[str | Prompt],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        **options: Unpack[SamplingOptions],
    ) -> list[Request]:
        """What `stream` asks of the engine, checked: for the front of `serve`.

        Returns: one request for each prompt, of whatever n; `row` is the prompt's place.
        """
        made = numbered(
            lambda each: (
                each if isinstance(each, Prompt) else completion_prompt(self.tokenizer, *self._short(each))
            ),
            listed("prompts", prompts, "strings or Prompts"),
        )
        call = Options.of(temperature, top_p, max_gen_len, False, False, options)
        return [request for _, request in self._calls.requests(made, call)]

    async def serve(self, main: Callable[[AsyncEngine], Awaitable[T]]) -> T | None:
        """Await main(front) on rank 0, where requests come in, while the other ranks follow; see `engine.serve`.

        All ranks call it. Until it returns the engine is the front's: no other call of this Llama may run.
        """
        return await serve(self.engine, main)

    def forget_prefixes(self) -> None:
        """Let no call from now on use keys and values that were computed before.

        Needed only after a change of the model that the engine does not see, such as a write to `weight.data`
        (docs/engine.md, "A changed model"). On several ranks one of them is enough.
        """
        self.engine.forget_prefixes()

    def _scored(self, result: Any, output: Output, call: Options) -> Any:
        """The result with tokens and scores, where the call asked for them."""
        if call.scored:
            result["tokens"] = [self.tokenizer.token_piece(token) for token in call.tokens(output)]
            result["logprobs"] = call.logprobs_of(output)
        if call.top:
            result["top_logprobs"] = alternatives(self.tokenizer, call.scores(output))
        return result
