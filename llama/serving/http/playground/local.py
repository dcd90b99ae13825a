"""The page at a port of this machine, for a server elsewhere, until it is interrupted. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn

from ....printable import tell
from ..addresses import is_local, listen, url_of
from .proxy import base_url, make_app

__all__ = ["serve_page"]


def serve_page(
    url: str,
    *,
    key: str | None = None,
    host: str = "127.0.0.1",
    port: int = 6006,
    allowed_hosts: tuple[str, ...] = (),
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM, which uvicorn raises again once it has ended.

    Args:
        url: of the server that the page talks to.
        key: its API key, which stays in this process.
        host, port, allowed_hosts: where to listen (0 takes a free port), and names that Host headers may have.
        ready: called with the page's address, in place of a line on stderr.

    Raises:
        ConfigError: `url` is not the address of a server, or the port cannot be had.
    """
    server = base_url(url)
    app = make_app(server, key=key, host=host, allowed_hosts=allowed_hosts)
    with listen(host, port) as listener:
        if key is not None and not is_local(host):
            tell("warning: whoever reaches this page from another machine uses the API key")
        address = url_of(host, listener)
        if ready is None:
            tell(f"The playground for {str(server).rstrip('/')} is on {address}")
        else:
            ready(address)
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,  # streams that run then are cancelled
        )
        uvicorn.Server(config).run(sockets=[listener])
