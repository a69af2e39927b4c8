"""What a replica answers to, as an OpenAPI 3.1 document: for people, generated clients, and hostile testers."""

from __future__ import annotations

from typing import Any

from hpcmass import __version__
from hpcmass.serve.interfaces import ANY, Field
from hpcmass.serve.protocol import Schema, datatype_of

Part = dict[str, Any]
_ERRORS = {
    "400": "No HTTP, no JSON, or not what the model's signature says",
    "401": "No token that is known",
    "404": "No such address",
    "405": "No such method",
    "408": "The request came too slowly",
    "413": "The body is too large",
    "414": "The address is too long",
    "415": "A compressed body",
    "429": "The queue is full, or this client sends too much; see Retry-After",
    "431": "The head is too large",
    "500": "The model failed",
    "501": "Upgrade or CONNECT",
    "503": "Loading, or too many connections",
}
_TEXT: Part = {"type": "string"}
_NUMBERS: Part = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def document(schema: Schema, tokens: bool) -> Part:
    """The document of one replica.

    Args:
        schema: Its model's side of the protocol.
        tokens: Whether it asks for one.
    """
    model = f"/v2/models/{schema.name}"
    told = {"type": "object", "required": ["name", "versions", "platform", "inputs", "outputs"]}
    paths: Part = {
        "/v2": _get("The server", {"type": "object", "required": ["name", "version", "extensions"]}),
        "/v2/health/live": _get("Whether the process answers", {"type": "object"}, free=True),
        "/v2/health/ready": _get("Whether the model is warm", {"type": "object"}, free=True),
        "/metrics": _get("Prometheus", None),
        "/openapi.json": _get("This document", {"type": "object"}),
    }
    for path in (model, f"{model}/versions/{schema.version}"):
        paths[path] = _get("Names, types and shapes", told)
        paths[f"{path}/ready"] = _get("Whether the model is warm", {"type": "object"})
        paths[f"{path}/infer"] = {"post": _infer()}
    found: Part = {
        "openapi": "3.1.0",
        "info": {"title": f"{schema.name}, version {schema.version}", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
                "Request": _request(schema),
                "Answer": _answer(schema),
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    return {**found, "security": [{"token": []}]} if tokens else found


def _get(summary: str, content: Part | None, *, free: bool = False) -> Part:
    kind = "text/plain" if content is None else "application/json"
    said: Part = {"summary": summary, "responses": _responses(kind, content or _TEXT)}
    return {"get": {**said, "security": []} if free else said}


def _infer() -> Part:
    return {
        "summary": "Inference",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("Request")}}},
        "responses": _responses("application/json", _ref("Answer")),
    }


def _responses(kind: str, content: Part) -> Part:
    error = {"application/json": {"schema": _ref("Error")}}
    refused = {code: {"description": text, "content": error} for code, text in _ERRORS.items()}
    return {"200": {"description": "An answer", "content": {kind: {"schema": content}}}, **refused}


def _ref(name: str) -> Part:
    return {"$ref": f"#/components/schemas/{name}"}


def _request(schema: Schema) -> Part:
    inputs = [_input(field, schema.rows) for field in schema.interface.inputs]
    names = [field.name for field in schema.interface.outputs]
    wanted = {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}}}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"], "maxLength": 200},
            "inputs": {
                "type": "array",
                "items": inputs[0] if len(inputs) == 1 else {"oneOf": inputs},
                "minItems": len(inputs),
                "maxItems": len(inputs),
            },
            "outputs": {"type": "array", "items": wanted, "maxItems": len(names)},
        },
    }


def _input(field: Field, rows: int) -> Part:
    axes = [{"type": "integer", "minimum": 1, "maximum": rows}]
    axes += [{"type": "integer", "minimum": 0} if n == ANY else {"const": n} for n in field.shape]
    kind = "boolean" if field.dtype == "bool" else "integer" if "int" in field.dtype else "number"
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": field.name},
            "datatype": {"const": datatype_of(field)},
            "shape": {"type": "array", "prefixItems": axes, "minItems": len(axes), "maxItems": len(axes)},
            "data": {
                "type": "array",
                "description": "All numbers, flat, or nested as the shape says",
                "items": {"type": [kind, "array"]},
            },
        },
    }


def _answer(schema: Schema) -> Part:
    one = {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"enum": [field.name for field in schema.interface.outputs]},
            "datatype": {"enum": sorted({datatype_of(field) for field in schema.interface.outputs})},
            "shape": _NUMBERS,
            "data": {"type": "array"},
        },
    }
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "id": _TEXT,
            "model_name": {"const": schema.name},
            "model_version": {"const": schema.version},
            "outputs": {"type": "array", "items": one, "minItems": 1},
        },
    }
