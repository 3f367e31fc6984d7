"""/health."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from flatlm.serving.schemas.answers import json_response

if TYPE_CHECKING:
    from flatlm.serving.app import Server


class ModelHealth(BaseModel):
    id: str
    ready: bool
    slots: int
    busy: int
    """Slots that are taken."""
    queue: int
    """Requests that wait for one."""
    restarts: int


class Health(BaseModel):
    status: str
    """"ok", or "starting" while a model's process is being started."""
    models: list[ModelHealth]


def router(server: "Server") -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/health", response_model=Health, responses={503: {"model": Health, "description": "A model is not ready."}})
    async def health() -> Response:
        """Whether all models are ready, and how busy they are."""
        states = [_state(model) for model in dict.fromkeys(server.models.values())]
        ready = all(state["ready"] for state in states)
        response = json_response({"status": "ok" if ready else "starting", "models": states})
        response.status_code = 200 if ready else 503
        return response

    return routes


def _state(model: Any) -> dict[str, Any]:
    process = model.process
    return {
        "id": model.name,
        "ready": process.ready,
        "slots": process.spec.slots,
        "busy": process.busy,
        "queue": process.waiting,
        "restarts": process.restarts,
    }
