"""Parameters that the HTTP API takes, checked, with errors in OpenAI's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sglang.srt.blendserve.batch_file.types import Endpoint
from sglang.srt.blendserve.server.api_errors import ApiError, invalid
from sglang.srt.blendserve.server.completion_window import window_seconds

_MAX_PAIRS = 16
_SHOWN_ENDPOINTS = ", ".join(f"'{endpoint}'" for endpoint in Endpoint)

Model = TypeVar("Model", bound=BaseModel)


def _window(text: str) -> str:
    window_seconds(text)
    return text


def _endpoint(text: str) -> str:
    if text not in tuple(Endpoint):
        raise ValueError(f"supported are {_SHOWN_ENDPOINTS}.")
    return text


class ExpiresAfter(BaseModel):
    """How long a file is kept: seconds after it was created, one hour to 30 days."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class CreateBatch(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: Annotated[str, AfterValidator(_endpoint)]
    completion_window: Annotated[str, AfterValidator(_window)]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=_MAX_PAIRS),
        ]
        | None
    ) = None
    output_expires_after: ExpiresAfter | None = None


class CreateFile(BaseModel):
    """The text fields of ``POST /v1/files``."""

    model_config = ConfigDict(extra="forbid")

    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None


class ListBatches(BaseModel):
    """The query of ``GET /v1/batches``."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ListFiles(BaseModel):
    """The query of ``GET /v1/files``."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


def query_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a query whose parameters are the fields of ``model``."""
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties.items()
        ]
    }


def json_body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body of type ``model``."""
    schema = model.model_json_schema()
    for name, definition in schema.pop("$defs", {}).items():
        _inline(schema, f"#/$defs/{name}", definition)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inline(node: Any, reference: str, definition: dict[str, Any]) -> None:
    """Replace references to ``definition``; OpenAPI keeps definitions elsewhere."""
    if isinstance(node, dict):
        if node.get("$ref") == reference:
            node.pop("$ref")
            node.update(definition)
        for child in list(node.values()):
            _inline(child, reference, definition)
    elif isinstance(node, list):
        for child in node:
            _inline(child, reference, definition)


def from_json(model: type[Model], body: bytes) -> Model:
    """Return the parameters in a JSON body.

    Raises:
        ApiError: 400, naming the first parameter at fault.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error


def from_fields(model: type[Model], fields: Mapping[str, str]) -> Model:
    """Return the parameters in form fields or a query; ``a[b]`` is field ``b`` of ``a``.

    Raises:
        ApiError: 400, naming the first parameter at fault.
    """
    nested: dict[str, Any] = {}
    for key, value in fields.items():
        outer, bracket, inner = key.partition("[")
        if bracket and inner.endswith("]"):
            group = nested.setdefault(outer, {})
            if isinstance(group, dict):
                group[inner[:-1]] = value
        else:
            nested[key] = value
    try:
        return model.model_validate(nested)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"] if part != "[key]"]
    param = ".".join(path) or None
    kind = first["type"]
    if kind == "json_invalid":
        return invalid("The body is not valid JSON. Send one JSON object.", code="invalid_json")
    if kind == "missing":
        return invalid(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    reason = first["msg"].removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    where = "Invalid body" if param is None else f"Invalid value for '{param}'"
    return invalid(f"{where}: {reason}", param, code)
