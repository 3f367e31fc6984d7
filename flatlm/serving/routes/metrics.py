"""/metrics."""

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from flatlm.serving.schemas.answers import READS

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/metrics", response_class=PlainTextResponse, responses=READS)
    async def metrics() -> PlainTextResponse:
        """What the server has done, for Prometheus."""
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
