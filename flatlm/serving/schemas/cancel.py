"""/v1/cancel."""

from typing import Literal

from pydantic import BaseModel, Field

from flatlm.serving.schemas.common import Strict


class CancelRequest(Strict):
    id: str = Field(max_length=200, description="Of an answer, as its first event told it.")


class Cancelled(BaseModel):
    id: str
    cancelled: Literal[True] = True
