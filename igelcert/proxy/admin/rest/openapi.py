"""The OpenAPI document, made of the operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .... import __version__
from ..schemas import SCHEMAS, ref
from .operations import JSON, NDJSON, Operation

__all__ = ["PREFIX", "document"]

PREFIX = "/api/v1"


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "igelcert ca-proxy",
            "version": __version__,
            "description": "Administration of the proxy. Nothing here gives out a password or a key; "
            "a registration token is in the one answer that makes it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": PREFIX}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "ca-proxy token add NAME --role admin",
                }
            },
            "schemas": SCHEMAS,
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    status, schema, media = operation.answer
    answer: dict[str, Any] = {"description": "done"}
    if media:
        answer["content"] = {media: {"schema": ref(schema) if schema else {"type": "string"}}}
    if operation.csv_body:
        answer["content"][NDJSON] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {str(status): answer}
    for code, when in sorted(operation.statuses.items()):
        content: dict[str, Any] = {JSON: {"schema": ref("Error")}}
        if code == 400:  # what cannot even be read as HTTP is refused before anybody looks at its address
            content["text/plain"] = {"schema": {"type": "string"}}
        responses[str(code)] = {"description": when, "content": content}
    name = operation.path.strip("/").replace("/", "_").replace("{", "").replace("}", "").replace(".", "_")
    found: dict[str, Any] = {
        "operationId": f"{operation.method.lower()}_{name}",
        "summary": operation.summary,
        "tags": [operation.path.split("/")[1].partition(".")[0]],
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation)],
        "responses": responses,
    }
    if operation.csv_body:
        sheet = {
            "schema": {"type": "string", "example": "unit_id,directory,hostname\n00E0C5123456,/Berlin,\n"}
        }
        found["requestBody"] = {"required": True, "content": {"text/csv": sheet}}
    elif operation.body:
        found["requestBody"] = {
            "required": operation.body_required,
            "content": {JSON: {"schema": ref(operation.body)}},
        }
    return found


def _path_parameters(path: str) -> list[dict[str, Any]]:
    examples = {"unit_id": "00E0C5123456", "name": "lan"}
    return [
        {
            "name": part[1:-1],
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
            "example": examples[part[1:-1]],
        }
        for part in path.split("/")
        if part.startswith("{")
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": name in operation.required, "schema": schema}
        for name, schema in operation.query.items()
    ]
