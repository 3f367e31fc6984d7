"""The page: its files, read once from a fixed table, so that nothing of a request reaches the disk; and what it asks for itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from flatlm.serving.markdown import to_html
from flatlm.serving.schemas.answers import READS, json_response, refusals
from flatlm.serving.schemas.common import Strict
from flatlm.serving.text_model import TextModel
from flatlm.utilities.tokenizing.named_templates import PLAIN

if TYPE_CHECKING:
    from flatlm.serving.app import Server

FOLDER = Path(__file__).parents[2] / "assets" / "webui"
MODULES = ("answer", "api", "card", "chat", "compare", "diff", "dom", "main", "markdown", "message", "parameters", "state", "theme")
FILES = {
    "/": ("index.html", "text/html"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/ui/{name}.css": (f"{name}.css", "text/css") for name in ("style", "views")},
    **{f"/ui/{name}.js": (f"{name}.js", "text/javascript") for name in MODULES},
}
"""Paths: each file's name in FOLDER, and its type. They hold no secret, so they are answered without a key: the page asks for one."""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
LONGEST_MARKDOWN = 1 << 15
"""Characters. Texts that are made to take long take some seconds at this length; an answer that is longer stays plain."""
_OF_MANIFEST = ("flatlm", "family", "checkpoint", "parameters", "signatures", "kv_cache_len", "versions", "verification")
_OF_RECIPE = ("name", "summary", "warning", "bound")


class MarkdownRequest(Strict):
    text: str = Field(max_length=LONGEST_MARKDOWN)


def router(server: "Server") -> APIRouter:
    routes = APIRouter(tags=["page"])
    for path, (name, kind) in FILES.items():
        _add_file(routes, path, (FOLDER / name).read_bytes(), kind)

    @routes.get("/ui/models", responses=READS)
    async def models() -> Response:
        """What the page says of the models."""
        texts = [model for model in dict.fromkeys(server.models.values()) if isinstance(model, TextModel)]
        return json_response({"models": [describe(model) for model in texts]})

    @routes.post("/ui/markdown", responses=READS | refusals(400, 408, 413))
    def markdown(request: MarkdownRequest) -> Response:  # in a thread: others are being answered
        """Markdown as HTML that is safe to show."""
        response = json_response({"html": to_html(request.text)})
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return routes


def describe(model: TextModel) -> dict[str, Any]:
    """A model's card. `chat_template`: False too where it is talked to in plain mode; `bytes` of its file."""
    card, template = model.card, model.template or model.tokenizer.chat_template
    recipe = card.manifest.get("recipe") or {}
    manifest = {key: card.manifest[key] for key in _OF_MANIFEST if key in card.manifest}
    return {
        "id": card.id,
        "file": card.file,
        "bytes": card.bytes,
        "context": card.context,
        "vocab_size": card.vocab_size,
        "chat_template": template not in (None, PLAIN),
        "family": card.manifest.get("family"),
        "recipe": recipe.get("name"),
        "manifest": manifest | {"recipe": {key: recipe[key] for key in _OF_RECIPE if key in recipe}},
    }


def _add_file(routes: APIRouter, path: str, content: bytes, kind: str) -> None:
    media_type = kind if kind.startswith("image") else f"{kind}; charset=utf-8"

    async def file() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    routes.add_api_route(path, file, methods=["GET"], include_in_schema=False)
