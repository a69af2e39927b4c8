"""A client of a deployment that finds it again when its gateway moves. Needs numpy alone.

client = Client("mnist", project="work")         # or Client("http://127.0.0.1:8000", model="mnist")
client.infer(image=images)["probabilities"]
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from hpcmass.config import Project
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.files import check_name
from hpcmass.serve.deployment import Deployment

Array = np.ndarray[Any, Any]

TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32",
    "float64": "FP64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in TYPES.items()}
_AGAIN = (429, 502, 503, 504)  # inference changes nothing, so it may be asked for again


class ServeError(HpcmassError):
    """A request was answered with an error, or not at all; `data["status"]` is HTTP's, 0 without answer."""


class Client:
    """Asks a deployment, or one replica. May be used by several threads, each over a connection of its own.

    Args:
        at: The deployment's name, or a URL.
        project: The project of the deployment; default: found from the working folder.
        model: The model's name in addresses; default: the deployment's, or the last part of the URL's path.
        token: What is sent as `Authorization: Bearer`.
        timeout_s: For one answer.
        patience_s: For how long a request is tried again when nobody answers, or it is told to come again.
        ca: File of the certificates that are trusted with https; default: the system's.
    """

    def __init__(
        self, at: str, *, project: Project | Path | str | None = None, model: str | None = None,
        token: str | None = None, timeout_s: float = 120.0, patience_s: float = 60.0,
        ca: Path | str | None = None,
    ) -> None:  # fmt: skip
        self._deployment: Deployment | None = None
        self._url: str | None = None
        self.token, self.timeout_s, self.patience_s = token, timeout_s, patience_s
        self._ca = None if ca is None else str(ca)
        self._mine = threading.local()
        if at.startswith(("http://", "https://")):
            base, _, named = at.rstrip("/").partition("/v2/models/")
            self._url, self.model = base, model or named
            if not self.model:
                raise NotFound("which model is meant is not said", where=at, hint="give model=NAME")
            return
        found = (
            project if isinstance(project, Project) else Project(Path(project)) if project else Project.find()
        )
        self._deployment = Deployment(found.deployments / check_name(at, "name of a deployment"))
        self.model = model or self._deployment.asked().model

    def infer(
        self, inputs: Mapping[str, Array] | None = None, request_id: str | None = None, /, **named: Array
    ) -> dict[str, Array]:
        """Outputs by name, of inputs by name; the first axis of each is the sample.

        Args:
            inputs: By name.
            request_id: By which a label may come later, see `label`.
            **named: Further inputs.

        Raises:
            ServeError: The request was refused, or nobody answered for `patience_s`.
        """
        head, data = _packed({**(inputs or {}), **named}, request_id)
        headers = {
            "Inference-Header-Content-Length": str(len(head)),
            "Content-Type": "application/octet-stream",
        }
        answer, body = self._ask("POST", f"/v2/models/{self.model}/infer", b"".join([head, *data]), headers)
        return _unpacked(body, answer.get("inference-header-content-length"))

    def label(self, request_id: str, label: Any) -> None:
        """Say what the right answer to a request was: a class's name, a number, or a list with one a sample.

        Raises:
            ServeError: It was refused, or nobody answered for `patience_s`.
        """
        body = json.dumps({"id": request_id, "label": label}).encode()
        self._ask("POST", f"/v2/models/{self.model}/labels", body, {"Content-Type": "application/json"})

    def metadata(self) -> dict[str, Any]:
        """Names, types and shapes of the model's inputs and outputs."""
        found: dict[str, Any] = json.loads(self._ask("GET", f"/v2/models/{self.model}", None, {})[1])
        return found

    def close(self) -> None:
        """End this thread's connection."""
        connection = getattr(self._mine, "connection", None)
        if connection is not None:
            connection.close()
        self._mine.connection = None

    # -- one request, until it is answered ----------------------------------------------------------------
    def _ask(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[dict[str, str], bytes]:
        if self.token is not None:
            headers = {**headers, "Authorization": f"Bearer {self.token}"}
        end, wait_s, told = time.monotonic() + self.patience_s, 0.02, "nobody answered"
        while True:
            status, pause_s = 0, wait_s
            try:
                connection = self._connection()
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                found = answer.read()
                status = answer.status
                said = {name.lower(): value for name, value in answer.getheaders()}
                if said.get("connection") == "close":
                    self.close()  # it is about to leave: the next request looks anew where to go
                if status == 200:
                    return said, found
                told = _error_of(found)
                if status not in _AGAIN:
                    raise ServeError(told, status=status)
                pause_s = max(wait_s, min(float(said.get("retry-after", 0)), 1.0))
            except (OSError, http.client.HTTPException) as error:
                self.close()
                told = f"{type(error).__name__}: {error}"
            if time.monotonic() + pause_s > end:
                raise ServeError(told, status=status, where=self.model, transient=True)
            time.sleep(pause_s)
            wait_s = min(1.0, 2 * wait_s)

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if connection is not None:
            return connection
        parts = urlsplit(self._where())
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca)
            connection = http.client.HTTPSConnection(
                str(parts.hostname), parts.port, timeout=self.timeout_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=self.timeout_s)
        self._mine.connection = connection
        return connection

    def _where(self) -> str:
        if self._deployment is None:
            assert self._url is not None
            return self._url
        found = self._deployment.endpoint()
        if found is None:
            raise ConnectionRefusedError("the deployment has no address yet")
        if found.get("state") == "ended" and self._deployment.asked().state == "ended":
            raise ServeError(f"the deployment '{self._deployment.path.name}' has ended", status=0)
        return str(found["url"])


def _packed(inputs: Mapping[str, Array], request_id: str | None) -> tuple[bytes, list[bytes]]:
    told, data = [], []
    for name, value in inputs.items():
        array = np.ascontiguousarray(value)
        if array.ndim == 0:
            raise ServeError(f"input '{name}' has no axis: the first one is the sample", status=0)
        kind = TYPES.get(array.dtype.name)
        if kind is None:
            raise ServeError(f"input '{name}' is of type {array.dtype}, which cannot be sent", status=0)
        raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        parameters = {"binary_data_size": len(raw)}
        told.append({"name": name, "datatype": kind, "shape": list(array.shape), "parameters": parameters})
        data.append(raw)
    said: dict[str, Any] = {"inputs": told, "parameters": {"binary_data_output": True}}
    if request_id is not None:
        said["id"] = request_id
    return json.dumps(said).encode(), data


def _unpacked(body: bytes, length: str | None) -> dict[str, Array]:
    size = len(body) if length is None else int(length)
    found: dict[str, Array] = {}
    for one in json.loads(body[:size])["outputs"]:
        dtype, shape = np.dtype(_DTYPES[one["datatype"]]), one["shape"]
        raw = one.get("parameters", {}).get("binary_data_size")
        if raw is None:
            found[one["name"]] = np.array(one["data"], dtype).reshape(shape)
        else:
            part = np.frombuffer(body, dtype.newbyteorder("<"), count=raw // dtype.itemsize, offset=size)
            found[one["name"]] = part.astype(dtype).reshape(shape)
            size += raw
    return found


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or "an error without words"
