"""/v1/cancel."""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from flatlm.serving.errors import ApiError
from flatlm.serving.schemas.answers import READS, refusals
from flatlm.serving.schemas.cancel import Cancelled, CancelRequest

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["writing"])

    @routes.post("/cancel", responses=READS | refusals(400, 404, 408, 413))
    async def cancel(body: CancelRequest) -> Cancelled:
        """Ends an answer that is being written, where it is: its reader is told that it stopped. Whoever knows its id may."""
        found = server.answers.get(body.id)
        if found is None or not found.stop():
            raise ApiError(404, f"no answer with the id {body.id!r} is being written", param="id", code="not_found")
        return Cancelled(id=body.id)

    return routes
