"""What an operator sets for a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CAPABILITIES", "Capability", "Settings"]

Capability = Literal["completion", "infilling", "chat", "python"]
CAPABILITIES: tuple[Capability, ...] = ("completion", "infilling", "chat", "python")


@dataclass(frozen=True)
class Settings:
    """One field for each flag of `codellama serve`.

    model_name: the name that answers carry. strict_model: whether another name in a request is an error.
    capability: what a bare user text means on chat routes. text_fim: whether infilling written as text with
    markers is recognised. max_queue: requests that may wait; more are refused with 429. max_body: bytes.
    body_timeout, request_timeout, drain_seconds, ping_seconds: seconds. api_keys: any of them opens the door;
    none: no key is asked for. allowed_hosts: names in the Host header besides local ones. cors_origins:
    origins of browser pages that may call. log_prompts: whether prompts may be written to the log.
    """

    model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    strict_model: bool = False
    capability: Capability = "chat"
    text_fim: bool = False
    max_queue: int = 256
    max_body: int = 8 << 20
    body_timeout: float = 30.0
    request_timeout: float = 600.0
    drain_seconds: float = 20.0
    ping_seconds: float = 15.0
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    playground: bool = False
    log_prompts: bool = False
