"""The routes that serve the page: `GET /`, and its files below `/playground/`.

Files are read once, when the routes are made, and only names that are in the folder are answered. No request reaches
the file system. Never imports torch.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["CONTENT_SECURITY_POLICY", "files", "routes"]

# What the folder may hold, and how it is labelled: with nosniff, a browser runs nothing that is labelled otherwise.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page's own files and its own server, nothing else. With Trusted Types and no policy, a browser that knows them
# refuses every way to turn a string into HTML or code, should one ever slip into the modules.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked about each time: an update of the server shows at once
}


def files() -> dict[str, bytes]:
    """Name -> content of every file of the page."""
    folder = resources.files(__package__).joinpath("static")
    return {
        each.name: each.read_bytes()
        for each in sorted(folder.iterdir(), key=lambda each: each.name)
        if PurePosixPath(each.name).suffix in TYPES
    }


def routes(server: str | None = None) -> list[Route]:
    """Routes for `/`, `/playground/{name}` and `/playground/config`.

    Args:
        server: the address that the page names as its server, when that is not where the page comes from.
    """
    pages = {name: _Page(name, content) for name, content in files().items()}

    async def index(request: Request) -> Response:
        return pages["index.html"].answer(request)

    async def file(request: Request) -> Response:
        page = pages.get(request.path_params["name"])
        if page is None:
            return Response("Not Found", 404, _HEADERS, media_type="text/plain")
        return page.answer(request)

    async def config(request: Request) -> Response:
        return JSONResponse({"server": server}, headers=_HEADERS)

    return [
        Route("/", index, methods=["GET"], include_in_schema=False),
        Route("/playground/config", config, methods=["GET"], include_in_schema=False),
        Route("/playground/{name}", file, methods=["GET"], include_in_schema=False),
    ]


class _Page:
    """One file, ready to be sent."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.headers = {
            **_HEADERS,
            "Content-Type": TYPES[PurePosixPath(name).suffix],
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        }

    def answer(self, request: Request) -> Response:
        known = [
            each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")
        ]
        if self.headers["ETag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)
