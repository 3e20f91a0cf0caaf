"""What runs here, and how it does: /health, /ready, /metrics, /v1/models, /v1/methods."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from anyorder.core import lookup
from anyorder.core.method import Method
from anyorder.core.options import json_schema
from anyorder.core.request import Request
from anyorder.server.schemas import default_temperature
from anyorder.server.service import Service

router = APIRouter()


@router.get("/health")
async def health(http: HttpRequest) -> Response:
    """Does the engine's thread live? While it works: how long ago did it finish a tick?"""
    service: Service = http.app.state.service
    worker = service.worker
    age = time.perf_counter() - worker.ticked_at if worker.is_busy else 0.0
    status = "ok" if worker.is_alive else "the engine's thread has died"
    data = {"status": status, "seconds_since_tick": round(age, 3)}
    return JSONResponse(data, 200 if worker.is_alive else 503)


@router.get("/ready")
async def ready(http: HttpRequest) -> dict[str, str]:
    """May requests be sent here?"""
    service: Service = http.app.state.service
    if service.draining or not service.worker.is_alive:
        raise service.shut_down()
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(http: HttpRequest) -> Response:
    """Counters, gauges and histograms for Prometheus."""
    service: Service = http.app.state.service
    text = service.metrics.text(service)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _model(service: Service) -> dict[str, Any]:
    abilities = service.engine.abilities
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "anyorder",
        "context_length": abilities.context_length,
        "vocabulary_size": abilities.vocabulary_size,
        "default_method": service.method,
        "methods": service.engine.usable_methods,
    }


@router.get("/v1/models")
async def models(http: HttpRequest) -> dict[str, Any]:
    """The one model that runs."""
    return {"object": "list", "data": [_model(http.app.state.service)]}


@router.get("/v1/models/{model:path}")
async def model(model: str, http: HttpRequest) -> dict[str, Any]:
    """The model by its name, which may hold slashes."""
    service: Service = http.app.state.service
    service.check_model(model)
    return _model(service)


@router.get("/v1/methods")
async def methods(http: HttpRequest) -> dict[str, Any]:
    """Decoding methods with their options as JSON Schemas, and the controls they share."""
    service: Service = http.app.state.service
    usable = set(service.engine.usable_methods)
    data = []
    for name in lookup.names("methods"):
        method: type[Method] = lookup.find("methods", name, kind="method")
        data.append(
            {
                "id": name,
                "name": name,
                "object": "method",
                "summary": (method.__doc__ or "").strip().splitlines()[0],
                "exact": method.exact,
                "needs": method.needs.text,
                "usable": name in usable,
                "fills_canvas": method.fills_canvas,
                "makes_choices": method.makes_choices,
                "default_temperature": default_temperature(Request(prompt="", method=name)),
                "options": json_schema(method),
            }
        )
    return {"object": "list", "data": data, "controls": json_schema(Request)}
