"""What an operator sets for a server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import ConfigError

__all__ = ["CAPABILITIES", "Capability", "Settings", "read_chat_template", "read_keys"]

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

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_body", "body_timeout", "request_timeout", "ping_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0")
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}; it must be in 0 to 65,535 (0 takes a free one)")
        if self.capability not in CAPABILITIES:
            raise ConfigError(
                f"capability is {self.capability!r}; it must be one of {', '.join(CAPABILITIES)}"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ConfigError("there is a TLS key but no certificate; give both files")


def read_keys(file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """API keys: one a line in a file (empty lines and lines that begin with # do not count), and those of the
    environment's CODELLAMA_API_KEYS, separated by commas or spaces.

    Raises:
        ConfigError: a file without any key: a server that was meant to be closed must not be open.
        OSError: a file that cannot be read.
    """
    keys = re.split(r"[,\s]+", environment.get("CODELLAMA_API_KEYS", ""))
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ConfigError(f"{file} holds no API key; write one a line")
        keys += found
    return tuple(dict.fromkeys(key for key in keys if key))


def read_chat_template(file: Path) -> tuple[str | None, Capability | None]:
    """model_name and capability of lmdeploy's JSON file; None for what it does not name.

    Raises:
        ConfigError: no JSON object, or another field: this server takes formats from the vocabulary alone.
        OSError: a file that cannot be read.
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(given, dict) or set(given) - {"model_name", "capability"}:
        raise ConfigError(
            f"{file} must hold a JSON object with model_name and capability alone; the prompt formats are those"
            " that the model was trained with"
        )
    name, capability = given.get("model_name"), given.get("capability")
    if name is not None and not (isinstance(name, str) and name):
        raise ConfigError(f"{file}: model_name must be a string that is not empty")
    if capability is not None and capability not in CAPABILITIES:
        raise ConfigError(f"{file}: capability must be one of {', '.join(CAPABILITIES)}")
    return name, capability
