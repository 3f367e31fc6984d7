"""/v1/models."""

from typing import Literal

from pydantic import BaseModel


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "flatlm"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
