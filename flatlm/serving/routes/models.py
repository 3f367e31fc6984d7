"""/v1/models."""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from flatlm.serving.schemas.answers import READS, refusals
from flatlm.serving.schemas.models import Model, ModelList

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["models"])

    @routes.get("/models", responses=READS)
    async def list_models() -> ModelList:
        """The models that are served, by all their names."""
        return ModelList(data=[Model(id=name, created=model.card.created) for name, model in server.models.items()])

    @routes.get("/models/{model:path}", responses=READS | refusals(404))
    async def retrieve_model(model: str) -> Model:
        """One of them. Its name may have slashes in it."""
        return Model(id=model, created=server.model(model).card.created)

    return routes
