"""`Llama`: the calls of the reference, and `stream`, `requests` and `serve`.

A call makes prompts (prompts.py), runs them on the engine (api/session.py), and turns the outputs into the
reference's dictionaries (api/results.py). Every rank makes the same call and gets the same result.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar, Unpack

import torch

from . import loading
from . import prompts as formats
from .api import arguments
from .api.compat import dialog_prompt_tokens, infilling_prompt_tokens, sample_top_p
from .api.options import Logprobs, Options, SamplingOptions
from .api.replicas import first_of
from .api.results import (
    ChatPrediction,
    CompletionPrediction,
    InfillingPrediction,
    Output,
    StreamDelta,
    answers,
    completions,
    infillings,
)
from .api.seeds import Seeds
from .api.session import Session
from .api.texts import Texts
from .distributed.world import leave
from .engine import Engine, Request, run_largest
from .errors import RequestError
from .model import Transformer
from .prompts import B_INST, B_SYS, E_INST, E_SYS, SPECIAL_TAGS, UNSAFE_ERROR, Dialog, Message, Prompt, Role
from .serving import AsyncEngine, serve
from .sizing.budget import CacheMemory
from .tokenizer import Tokenizer

T = TypeVar("T")

__all__ = ["ChatPrediction", "CompletionPrediction", "Dialog", "InfillingPrediction", "Llama", "StreamDelta"]
# Other names that code written for the reference imports from here.
__all__ += ["B_INST", "B_SYS", "E_INST", "E_SYS", "SPECIAL_TAGS", "UNSAFE_ERROR", "Message", "Role"]
__all__ += ["dialog_prompt_tokens", "infilling_prompt_tokens", "sample_top_p"]


class Llama:
    """A loaded model with its tokenizer and engine.

    Use `Llama.build`; `Llama(model, tokenizer)` wraps a Transformer that is already there. As a context
    manager, or with `close`, it gives its process groups back before the program ends.

    Args:
        model: its params carry max_seq_len and max_batch_size.
        tokenizer: of the same vocabulary.
        cache_tokens: positions that all sequences may hold together, running and retained; None for as many
            as the two limits allow.
        retained_tokens: how many of these may be kept for reuse; None for a quarter, at least max_seq_len.
        prefix_reuse: as in `build`.
        seed: as in `build`.
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
        adapter: str | os.PathLike[str] | None = None,
        quantize: str | None = None,
        cache_dtype: str = "auto",
    ) -> Llama:
        """Load a checkpoint, of any number of shards, onto the ranks of this launch.

        Args:
            ckpt_dir: a folder in Meta's layout (consolidated.NN.pth, params.json) or Hugging Face's
                (config.json, *.safetensors or pytorch_model*.bin), unchanged; or a GGUF file, of one that was
                split any part.
            tokenizer_path: by default tokenizer.model in ckpt_dir, of a GGUF the one in the file.
            max_seq_len, max_batch_size: limits of a sequence's tokens, and of sequences that run at the same
                time. Memory follows the tokens in use, not these.
            model_parallel_size: ranks that hold one model; by default all of the launch. With fewer, the
                launch holds several replicas that share out a call's prompts.
            device: auto (cuda, then mps, then cpu) or a device's name.
            dtype: auto (as stored, if the device computes well in it), bfloat16, float16, float32.
            seed: for calls that sample and pass no seed of their own: they repeat from one run of the program
                to the next. None: each such call draws one from torch's CPU generator, so that a program
                repeats under `torch.manual_seed`.
            cache_memory: of each rank, for keys and values: bytes (an integer, or "4GiB") or a share of what
                is free beside the weights (a float in (0, 1], or "50%"). By default what the two limits
                allow, and at most a quarter of the free memory for prefixes to reuse.
            prefix_reuse: keep computed keys and values until their memory is needed, and reuse them for
                prompts that begin alike.
            adapter: folder of a LoRA adapter, as PEFT saves it; merged into the weights while they are read.
            quantize: "int8" or "int4": quantize a plain checkpoint while it is read (docs/checkpoints.md).
            cache_dtype: of keys and values: auto (as the activations), or int8, 8.5 bits a number.

        Raises:
            CheckpointError: files missing, broken, or not fitting together.
            ConfigError: a parameter or params.json out of range; an unsupported feature in config.json.
            ParallelismError: a number of ranks that heads or devices do not allow.
            RankError: the ranks could not connect, or one of them is gone.
            TokenizerError: a tokenizer file that cannot be used.
            SamplingError: seed is negative or not an integer.
            OutOfMemoryError: weights and cache do not fit.
        """
        if seed is not None:
            seed = arguments.check_seed(seed)  # before minutes of loading
        given = (ckpt_dir, tokenizer_path, max_seq_len, max_batch_size, model_parallel_size, device, dtype)
        built = loading.build(
            *given, cache_memory, cache_dtype, adapter=adapter, quantize=quantize, largest_step=run_largest
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
        llama.folder, llama.quantize, llama.origin = Path(ckpt_dir), quantize, built.origin
        llama.adapter = None if adapter is None else Path(adapter)
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
        self.session = Session(self.engine, Seeds(seed, partial(first_of, model.parallel, model.device)))
        self._texts = Texts(self.engine)
        # Of the checkpoint, where `build` loaded one, of the adapter merged into it, and what it was quantized to.
        self.folder: Path | None = None
        self.adapter: Path | None = None
        self.quantize: str | None = None
        self.origin: loading.Origin | None = None
        self._joined = False

    def close(self, error: BaseException | None = None) -> None:
        """Give back the process groups that `build` joined. All ranks call it; a second call does nothing.

        Args:
            error: the error that ends the use of this model early, if any: a rank that failed alone does not
                wait for the others.
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
        """Continue lists of ids. Raises as `text_completion`.

        Args:
            max_gen_len: most tokens to add; None for as many as max_seq_len leaves room for.
            echo: return the prompt's ids, and scores, in front.
            stop_token: ends a sequence and is not returned; by default eos.
            options: see `text_completion`.

        Returns:
            The ids, and with `logprobs` the log-probability of each under the model (0 for a prompt's first),
            else None. With n > 1 the samples of a prompt follow one another.
        """
        own = () if stop_token is None else (arguments.check_integer("stop_token", stop_token, 0),)
        stops = frozenset(own or {self.tokenizer.eos_id})
        ids = arguments.id_lists("prompt_tokens", prompt_tokens)
        call = Options.of(temperature, top_p, max_gen_len, logprobs, echo, options)
        call.stop_ids = (*call.stop_ids, *own)  # the caller's: `ignore_eos` leaves it
        outputs = self.session.run([Prompt(each, stops, start_of_text=False) for each in ids], call)
        scores = [output.logprobs(call.echo) for output in outputs] if call.scored else None
        return [output.ids(call.echo) for output in outputs], scores

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
        """Continue texts. `prompt + generation` is the true text: the first space of a generation is kept.

        Args:
            prompts: any texts, in a list, an array, a generator. A control piece written out in one is plain
                text, unless `allow_control`. Numbers, here and below, may be numpy's.
            temperature: 0 is greedy.
            top_p: nucleus, in [0, 1]; 0 is greedy.
            max_gen_len: most tokens to add; None for as many as max_seq_len leaves room for.
            logprobs: True for tokens and their log-probabilities, a number for that many alternatives too.
            echo: return the prompt in front; with max_gen_len=0 and logprobs, this scores a text.
            options: top_k, min_p, stop, seed, n, prediction and more: see `SamplingOptions` (api/options.py).

        Returns:
            For each sample generation and finish_reason (stop, length, stop_sequence), and with logprobs
            tokens, logprobs and, for a number, top_logprobs.

        Raises:
            RequestError: parameters or prompts out of range; nothing was generated.
            NumericsError: logits that are not finite.
            RankError: one of several ranks failed, is gone, or does not make the same call.
        """
        texts = arguments.text_list("prompts", prompts)
        call = Options.of(temperature, top_p, max_gen_len, logprobs, echo, options)
        made = arguments.for_each_prompt(partial(self._texts.completion, allow_control=allow_control), texts)
        return completions(self.session.run(made, call), texts, self.tokenizer, call)

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
        before = arguments.text_list("prefixes", prefixes)
        if suffixes is None:
            pairs = arguments.for_each_prompt(formats.split_fill, before)
        else:
            after = arguments.text_list("suffixes", suffixes)
            if len(before) != len(after):
                raise RequestError(f"{len(before)} prefixes, but {len(after)} suffixes; give one for each")
            pairs = list(zip(before, after, strict=True))
        call = Options.of(temperature, top_p, max_gen_len, logprobs, False, options)

        prompt = partial(self._texts.infilling, suffix_first=suffix_first)
        outputs = self.session.run(arguments.for_each_prompt(prompt, pairs), call)
        return infillings(outputs, pairs, self.tokenizer, call)

    def chat_completion(
        self,
        dialogs: Iterable[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: Logprobs = False,
        **options: Unpack[SamplingOptions],
    ) -> list[ChatPrediction]:
        """Answer dialogs in the vocabulary's chat format: [INST], or Source/Destination if it has <step>.

        A dialog that holds a tag of that format is answered with the reference's error text, without running
        the model; finish_reason is "error" and `error` names tag and message.

        Args: as in `text_completion`.

        Raises:
            DialogError: roles, or an order of them, that the format does not know. Else as `text_completion`.
        """
        asked = arguments.check_list("dialogs", dialogs, "lists of messages")
        call = Options.of(temperature, top_p, max_gen_len, logprobs, False, options)
        prompts = arguments.for_each_prompt(self._texts.chat, asked)
        allowed = {row: prompt for row, prompt in enumerate(prompts) if isinstance(prompt, Prompt)}
        outputs: list[Output] = []
        if allowed or not prompts:
            outputs = self.session.run(list(allowed.values()), call, list(allowed), len(prompts))
        return answers(outputs, prompts, self.tokenizer, call)

    # ---- streams and services --------------------------------------------------------------------

    def stream(
        self,
        prompts: Iterable[str | Prompt],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        *,
        logprobs: Logprobs = False,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[StreamDelta]:
        """Continue texts, or prompts made by prompts.py, and yield new text as it comes, with ids and scores.

        The deltas of a prompt, joined, are the `generation` of the blocking call. Their scores have
        alternatives if logprobs is a number. Raises as `text_completion`: RequestError here, not at the first
        delta. Leaving the loop early ends the generation. On several ranks close the iterator then, with
        `contextlib.closing` or its `close`: the garbage collector may end it at different times on different
        ranks.
        """
        asked = self.requests(prompts, temperature, top_p, max_gen_len, logprobs=logprobs, **options)
        return self.session.stream(asked)

    def requests(
        self,
        prompts: Iterable[str | Prompt],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        *,
        logprobs: Logprobs = False,
        echo: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> list[Request]:
        """The requests that `stream` gives the engine, for the AsyncEngine of `serve`. Raises RequestError.

        Args:
            max_gen_len: cut to the room that the prompt leaves; PromptTooLongError if it leaves none.
            logprobs: a number for that many alternatives with each score.
            echo: with logprobs, score the prompts too. Their text is not repeated.

        Returns: one request for each prompt, with all its n samples; `row` is the prompt's index.
        """
        given = arguments.check_list("prompts", prompts, "strings or Prompts")
        made = arguments.for_each_prompt(self._texts.completion, given)
        call = Options.of(temperature, top_p, max_gen_len, logprobs, echo, options)
        return self.session.requests(made, call)

    async def serve(
        self, main: Callable[[AsyncEngine], Awaitable[T]], *, drain_seconds: float = 0.0
    ) -> T | None:
        """Await main(engine), with an AsyncEngine that takes requests, on rank 0; the other ranks follow it.

        All ranks call it; see `serving.serve`. Until it returns, no other call of this Llama may run. After
        SIGTERM no new requests are taken, and running ones have `drain_seconds` to end before they are
        cancelled.
        """
        return await serve(self.engine, main, drain_seconds=drain_seconds)

    def forget_prefixes(self) -> None:
        """Let no later call reuse keys and values computed before now.

        Needed only after a change of the model that the engine does not notice, such as a write to
        `weight.data` (docs/engine.md, "A changed model"). On several ranks it is enough to call it on one.
        """
        self.engine.forget_prefixes()
