"""The HTTP server's application: models in, endpoints out."""

import re
import time
from collections.abc import Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flatlm import __version__
from flatlm.errors import FlatlmError
from flatlm.serving.answers.choices import Choices
from flatlm.serving.answers.sse import ClientGone
from flatlm.serving.encoder_model import EncoderModel
from flatlm.serving.errors import ApiError, BadRequest
from flatlm.serving.limits import OPEN_PATHS, ApiKeys, BodyLimit, HostNames
from flatlm.serving.metrics import LEFT, CountRequests, Metrics
from flatlm.serving.routes import anthropic, cancel, chat, completions, embeddings, health, metrics, models, page, rerank, responses_api
from flatlm.serving.settings import ServerSettings
from flatlm.serving.text_model import TextModel

Model: TypeAlias = TextModel | EncoderModel
_ALTERNATIVE = re.compile(r"^(str|int|[A-Z]\w+)$|[\[-]|^\(")
"""What pydantic calls the alternatives of a field, and the tags of schemas/shapes.py."""
ROUTERS = (
    health.router,
    metrics.router,
    models.router,
    chat.router,
    completions.router,
    responses_api.router,
    anthropic.router,
    embeddings.router,
    rerank.router,
    cancel.router,
)
WRONG_KIND = "wrong_kind_of_model"


class Server:
    """What the endpoints share."""

    def __init__(self, models: Mapping[str, Model], settings: ServerSettings) -> None:
        """`models`: by the names that requests call them; one may have several."""
        self.models, self.settings = dict(models), settings
        self.metrics = Metrics(self.models)
        self.started = int(time.time())
        self.answers: WeakValueDictionary[str, Choices] = WeakValueDictionary()
        """What is being written, by the ids that were told."""

    def model(self, name: str) -> Model:
        """The model of that name, looked up among those that are served and nowhere else. ApiError (404)."""
        found = self.models.get(name)
        if found is None:
            raise ApiError(
                404,
                f"the model {name[:100]!r} is not served here; there are {', '.join(self.models)}",
                param="model",
                code="model_not_found",
            )
        return found

    def text_model(self, name: str) -> TextModel:
        """The same, of a model that writes texts. BadRequest for another kind."""
        found = self.model(name)
        if not isinstance(found, TextModel):
            raise BadRequest(
                f"the model {found.name} is {found.what}: it reads texts and writes none; this needs a model that writes",
                param="model",
                code=WRONG_KIND,
            )
        return found

    def encoder(self, name: str) -> EncoderModel:
        """The same, of a model that reads texts. BadRequest for another kind."""
        found = self.model(name)
        if not isinstance(found, EncoderModel):
            raise BadRequest(
                f"the model {found.name} is a decoder, which writes texts; this needs an encoder, exported for embedding, features or "
                "classification",
                param="model",
                code=WRONG_KIND,
            )
        return found

    def deadline(self) -> float:
        """Of a request that comes now: an instant of time.monotonic()."""
        return time.monotonic() + self.settings.timeout_s


def create_app(models: Mapping[str, Model], settings: ServerSettings) -> FastAPI:
    """The application over started models. Who made them closes them."""
    server = Server(models, settings)
    app = FastAPI(
        title="FlatLM",
        version=__version__,
        summary="OpenAI's API over exported files",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        exception_handlers=_HANDLERS,
        separate_input_output_schemas=False,
        redirect_slashes=False,
    )
    app.state.server = server
    for router in (*ROUTERS, page.router) if settings.page else ROUTERS:
        app.include_router(router(server))
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(ApiKeys, keys=settings.api_keys, open_paths=(*OPEN_PATHS, *page.FILES) if settings.page else OPEN_PATHS)
    app.add_middleware(HostNames, settings=settings)
    app.add_middleware(CountRequests, metrics=server.metrics)
    app.openapi = lambda: _description(app, list(server.models))  # type: ignore[method-assign]
    return app


def _description(app: FastAPI, names: list[str]) -> dict[str, Any]:
    """The OpenAPI description, without the 422 of FastAPI's own, which is never sent."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        kinds = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):
            kinds.pop(name, None)
        for kind in kinds.values():
            if "maxLength" in (model := kind.get("properties", {}).get("model", {})):
                model["examples"] = names
        app.openapi_schema = schema
    return app.openapi_schema


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # FastAPI reads JSON alone
        return BadRequest("the body is not said to be JSON: send Content-Type: application/json").response(request.url.path)
    return describe_invalid(error.errors()).response(request.url.path)


def describe_invalid(errors: Any) -> BadRequest:
    """What is wrong with a body: an unknown field, or else the alternatives of a field that its value came furthest in."""
    first = max(errors, key=lambda each: (each["type"] == "extra_forbidden", len(each["loc"]), -errors.index(each)))
    if first["type"] == "json_invalid":
        return BadRequest(f"the body is not JSON: {first['ctx'].get('error', 'it cannot be read')}")
    field = _field(first)
    if first["type"] == "extra_forbidden":
        return BadRequest(f"unknown field {field}: it is not one of this endpoint's", param=field, code="unknown_field")
    same = [each["msg"] for each in errors if _field(each) == field and len(each["loc"]) == len(first["loc"])]
    return BadRequest(f"{field or 'the body'}: {'; or: '.join(dict.fromkeys(same))}", param=field)


def _field(error: Mapping[str, Any]) -> str | None:
    """`messages[0].role`, without the names that pydantic has for the alternatives of a field."""
    parts, last = list(error["loc"][1:]), []
    if error["type"] == "extra_forbidden":
        parts, last = parts[:-1], parts[-1:]
    text, before = "", None
    for part in [part for part in parts if isinstance(part, int) or not _ALTERNATIVE.search(part)] + last:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != before:
            text += f".{part}"
        before = part
    return text.removeprefix(".")[:200] or None


async def _http_error(request: Request, error: Exception) -> Response:
    """Of FastAPI and Starlette: no such path, no such method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    messages = {404: f"there is no {request.url.path[:200]} here; see /openapi.json", 405: f"{request.method} is not for this path"}
    return ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), headers=error.headers).response(request.url.path)


async def _bad_input(request: Request, error: Exception) -> Response:
    return BadRequest(str(error)).response(request.url.path)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=LEFT)


async def _fault(request: Request, error: Exception) -> Response:
    return ApiError(500, f"a fault in FlatLM: {type(error).__name__}", code="fault").response(request.url.path)


_HANDLERS: dict[int | type[Exception], Any] = {
    ApiError: _api_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
    FlatlmError: _bad_input,
    ClientGone: _gone,
    Exception: _fault,
}
