"""/v1/rerank, as Cohere and Jina have it."""

import secrets
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flatlm.serving.answers import sse
from flatlm.serving.schemas.answers import WRITES, json_response
from flatlm.serving.schemas.embeddings import Ranking, RerankRequest

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["reading"])

    @routes.post("/rerank", response_model=Ranking, response_model_exclude_none=True, responses=WRITES)
    async def rerank(request: Request, body: RerankRequest) -> Response:
        """How well documents answer a query, the best first: by a classifier of pairs, or by vectors' cosine, as `method` tells."""
        model = server.encoder(body.model)
        texts = [document if isinstance(document, str) else document.text for document in body.documents]
        work = model.score(body.query, texts, truncate=bool(body.truncate), deadline=server.deadline())
        found = await sse.unless_gone(request, work)
        order = sorted(range(len(found)), key=lambda place: -found[place].relevance)[: body.top_n]
        results: list[dict[str, Any]] = [{"index": place, "relevance_score": found[place].relevance} for place in order]
        if body.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        tokens = sum(each.tokens for each in found)
        return json_response(
            {
                "id": f"rerank-{secrets.token_hex(12)}",
                "model": body.model,
                "method": "cosine" if model.facts.embeds else "sequence_pair",
                "results": results,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    return routes
