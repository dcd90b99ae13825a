"""For operators: /health, /metrics, and a redirect from / to the schema's page."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import RedirectResponse, Response

from .answer_fields import error_fields
from .problems import Family
from .replies import JsonReply
from .routes import Call, Route

__all__ = ["FAMILY", "HOME", "ROUTES"]

FAMILY = Family("operations", lambda problem: {"error": error_fields(problem)})


def _health(call: Call) -> Response:
    service = call.service
    if service.ready and service.engine.accepting:
        return JsonReply({"status": "ok"})
    # llama.cpp's shape, for which its clients look.
    message = "Loading model" if not service.ready else "The server is shutting down"
    error = {"code": 503, "message": message, "type": "unavailable_error"}
    return JsonReply({"error": error}, 503, {"Retry-After": "1"})


def _metrics(call: Call) -> Response:
    text = generate_latest(call.service.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _home(call: Call) -> Response:
    return RedirectResponse("/docs")


ROUTES = (
    Route("GET", ("/health", "/v1/health"), "Whether the server takes requests", _health),
    Route("GET", ("/metrics",), "Gauges, counters and histograms for Prometheus", _metrics),
)
HOME = Route("GET", ("/",), "To the pages of this server", _home)
