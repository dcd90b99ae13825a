"""Ollama's routes about models: /api/show, /api/tags, /api/ps, /api/version, /api/pull. There is one model.

What would change or add models is refused: an operator chooses the model with the server's command line.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from starlette.responses import Response

from ....sizing.budget import parameter_count
from ..bodies import Body, parse
from ..problems import Family, Problem
from ..replies import JsonReply, dumps
from ..routes import Call, Route
from ..service import Service

__all__ = ["FAMILY", "ROUTES", "check_model", "timestamp"]

FAMILY = Family("Ollama", lambda problem: {"error": problem.message})

# The version of Ollama whose API these routes follow (the first with logprobs). Some clients refuse older ones.
_API_VERSION = "0.12.11"
# Not the prompts themselves, which are made of exact ids, but what clients look for: Continue sends a suffix only
# if the template has one.
_INFILLING = "{{- if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{ else }}"
_PLAIN = "{{ .Prompt }}"
_INST = "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST]"
_STEP = (
    "Source: system\n\n {{ .System }}<step> Source: user\n\n {{ .Prompt }}<step> Source: assistant\nDestination:"
    " user\n\n "
)
# What weights are stored as, under Ollama's names; int4z and int8z, of GPTQ and AWQ, have none there.
_SHORT_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_SHORT_NAMES |= {"int8": "Q8_0", "int4": "Q4_0", "k4": "Q4_K", "int4z": "INT4", "int8z": "INT8"}


class OllamaModelBody(Body):
    """A body that names a model; `name` is the older field."""

    INERT: ClassVar[frozenset[str]] = frozenset({"insecure", "verbose"})
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"system": ("",), "template": ("",), "options": ({},)}
    model: str | None = None
    name: str | None = None
    stream: bool = True

    @property
    def named(self) -> str | None:
        """The model's name, by either field."""
        return self.model or self.name


def _show(call: Call) -> Response:
    service, body = call.service, parse(OllamaModelBody, call.data)
    if not body.named:
        raise Problem(400, "invalid_request", "model is missing", "model")
    check_model(service, body.named)
    infills = service.tokenizer.supports_infilling
    return JsonReply(
        {
            "license": "",
            "modelfile": f"# codellama serve\nFROM {service.settings.model_name}\n",
            # No stop lines: Continue adds those to its own.
            "parameters": f"num_ctx {service.max_model_len}",
            "template": _template(service),
            "details": _details(service),
            "model_info": _model_info(service),
            "capabilities": ["completion", *(["insert"] if infills else [])],
            "modified_at": _started(service),
        }
    )


def _template(service: Service) -> str:
    tokenizer = service.tokenizer
    template = _PLAIN
    if service.settings.capability == "chat":
        template = _INST if tokenizer.step_id is None else _STEP
    return f"{_INFILLING}{template}{{{{ end }}}}" if tokenizer.supports_infilling else template


def _details(service: Service) -> dict[str, Any]:
    origin = service.llama.origin
    return {
        "parent_model": "",
        "format": "pytorch" if origin is None else origin.file_format,
        "family": "llama",
        "families": ["llama"],
        "parameter_size": _shortened(parameter_count(service.llama.model.params)),
        "quantization_level": _level(service),
    }


def _level(service: Service) -> str:
    """As a GGUF file says, e.g. Q4_K_M; else what most weights are stored as, the embedding aside, which is plain."""
    origin = service.llama.origin
    if origin is not None and origin.file_format == "gguf" and origin.quantization and origin.adapter is None:
        return _SHORT_NAMES.get(
            origin.quantization, origin.quantization
        )  # int4 of a plain file, quantized while read
    found = service.llama.model.held_bytes
    quantized = Counter({name: size for name, size in found.items() if name.startswith(("int", "k"))})
    name = quantized.most_common(1)[0][0] if quantized else service.dtype
    return _SHORT_NAMES.get(name, name)


def _shortened(count: int) -> str:
    """As Ollama writes it: 6.7B, 110M."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _model_info(service: Service) -> dict[str, Any]:
    """Under the names of GGUF files."""
    args, tokenizer = service.llama.model.params, service.tokenizer
    return {
        "general.architecture": "llama",
        "general.basename": service.settings.model_name,
        "general.parameter_count": parameter_count(args),
        "llama.attention.head_count": args.n_heads,
        "llama.attention.head_count_kv": args.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": args.norm_eps,
        "llama.block_count": args.n_layers,
        "llama.context_length": service.max_model_len,
        "llama.embedding_length": args.dim,
        "llama.feed_forward_length": args.ffn_dim,
        "llama.rope.freq_base": args.rope_theta,
        "llama.vocab_size": args.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
    }


def _entry(service: Service) -> dict[str, Any]:
    """The model in a list. The digest stands for its name and shape; there is no manifest to digest."""
    name, model = service.settings.model_name, service.llama.model
    return {
        "name": name,
        "model": name,
        "size": sum(model.held_bytes.values()) * model.parallel.size,
        "digest": hashlib.sha256(dumps(_model_info(service)).encode()).hexdigest(),
        "details": _details(service),
    }


def _tags(call: Call) -> Response:
    return JsonReply({"models": [{**_entry(call.service), "modified_at": _started(call.service)}]})


def _ps(call: Call) -> Response:
    service, entry = call.service, _entry(call.service)
    on_cpu = service.llama.model.device.type == "cpu"
    running = {
        **entry,
        "expires_at": "9999-12-31T23:59:59Z",  # never: it stays until the server ends
        "size_vram": 0 if on_cpu else entry["size"],
        "context_length": service.max_model_len,
    }
    return JsonReply({"models": [running]})


def _version(call: Call) -> Response:
    return JsonReply({"version": _API_VERSION})


def _started(service: Service) -> str:
    return timestamp(datetime.fromtimestamp(service.started, UTC))


def timestamp(moment: datetime) -> str:
    """A moment in UTC as Ollama writes it, with a Z."""
    return moment.isoformat().replace("+00:00", "Z")


def check_model(service: Service, name: str | None) -> None:
    """As `Service.check_model`, with the tag that Ollama's clients add."""
    service.check_model(_without_tag(service, name))


def _without_tag(service: Service, name: str | None) -> str | None:
    """`NAME:latest` is NAME."""
    mine = service.settings.model_name
    return mine if name == f"{mine}:latest" else name


def _pull(call: Call) -> Response:
    service, body = call.service, parse(OllamaModelBody, call.data)
    mine, named = service.settings.model_name, body.named
    if _without_tag(service, named) != mine:
        message = f"this server has {mine!r} and cannot pull {named!r}; start another one for another model"
        raise Problem(400, "unsupported", message, "model")
    if not body.stream:
        return JsonReply({"status": "success"})
    lines = [{"status": "pulling manifest"}, {"status": "success"}]
    return Response("".join(f"{dumps(line)}\n" for line in lines), media_type="application/x-ndjson")


def _refused(what: str) -> Callable[[Call], Response]:
    def refuse(call: Call) -> Response:
        raise Problem(400, "unsupported", f"this server cannot {what}; it serves one model, for text")

    return refuse


ROUTES = (
    Route("POST", ("/api/show",), "What the model is and can do", _show, (OllamaModelBody,)),
    Route("GET", ("/api/tags",), "The model of this server, as Ollama lists it", _tags),
    Route("GET", ("/api/ps",), "The model in memory", _ps),
    Route("GET", ("/api/version",), "The version of Ollama's API", _version),
    Route("POST", ("/api/pull",), "Succeeds for the model of this server", _pull, (OllamaModelBody,)),
    Route("POST", ("/api/create",), "Refused", _refused("create models")),
    Route("POST", ("/api/copy",), "Refused", _refused("copy models")),
    Route("POST", ("/api/push",), "Refused", _refused("push models")),
    Route("DELETE", ("/api/delete",), "Refused", _refused("delete models")),
    Route("POST", ("/api/blobs/{digest}",), "Refused", _refused("take files")),
    Route("POST", ("/api/embed", "/api/embeddings"), "Refused", _refused("make embeddings")),
)
