"""/v1/embeddings, and /v1/embed, which is the same."""

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from flatlm.serving.answers import sse
from flatlm.serving.engines.encoder_messages import Text
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.answers import WRITES, json_response
from flatlm.serving.schemas.embeddings import EmbeddingList, EmbeddingsRequest

if TYPE_CHECKING:
    from flatlm.serving.app import Server

Vector = NDArray[np.float32]


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["reading"])

    async def embed(request: Request, body: EmbeddingsRequest) -> Response:
        """A vector for each text."""
        model = server.encoder(body.model)
        if body.dimensions is not None and body.dimensions > model.facts.dimensions > 0:
            raise BadRequest(
                f"the model {model.name} gives vectors of {model.facts.dimensions} dimensions, not of more", param="dimensions"
            )
        work = model.embed(_texts(body), truncate=bool(body.truncate), deadline=server.deadline())
        found = await sse.unless_gone(request, work)
        tokens = sum(each.tokens for each in found)
        data = [{"object": "embedding", "index": place, "embedding": _told(each.vector, body)} for place, each in enumerate(found)]
        return json_response(
            {"object": "list", "model": body.model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        )

    for path, name in (("/embeddings", "create_embeddings"), ("/embed", "embed")):
        routes.post(path, response_model=EmbeddingList, responses=WRITES, operation_id=name)(embed)
    return routes


def _texts(body: EmbeddingsRequest) -> list[Text]:
    given: Any = body.input
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given


def _told(vector: Vector, body: EmbeddingsRequest) -> list[float] | str:
    if body.dimensions is not None and body.dimensions < len(vector):
        vector = shortened(vector, body.dimensions)
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]


def shortened(vector: Vector, dimensions: int) -> Vector:
    """The first numbers of a vector, brought to the length 1; zeros stay zeros."""
    kept = vector[:dimensions].astype(np.float64)
    length = float(np.linalg.norm(kept))
    return (kept / length if length else kept).astype(np.float32)
