"""Addresses to listen on, and the names in Host headers. Never imports torch."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from ...errors import ConfigError
from ...printable import reason

__all__ = ["host_is_allowed", "is_local", "listen", "url_of"]


def listen(host: str, port: int) -> socket.socket:
    """An address, taken but not yet open: clients are refused until something serves it.

    Raises:
        ConfigError: the address cannot be had.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port is {port}; it must be in 0 to 65,535 (0 takes a free one)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {reason(error)}; choose another") from None
    return listener


def url_of(host: str, listener: socket.socket, *, tls: bool = False) -> str:
    """The URL of an address that `listen` took."""
    name = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{name}:{listener.getsockname()[1]}"


def host_is_allowed(header: str, host: str, allowed: Collection[str]) -> bool:
    """Whether a Host header names a server that listens on `host`.

    On this machine alone: a local name, or one of `allowed`. Elsewhere: one of `allowed`; any, if there are none.
    """
    if not header:  # HTTP/1.0; every browser sends one
        return True
    name = _name_of(header)
    if name in map(str.lower, allowed) or "*" in allowed:  # urlsplit has lowered the name
        return True
    return is_local(name) if is_local(host) else not allowed


def is_local(name: str) -> bool:
    """Whether a name or address is of this machine alone."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name_of(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""
