"""What is answered at which address."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import orjson

from hpcmass import __version__
from hpcmass.errors import DataError
from hpcmass.monitor.answers import check_label
from hpcmass.monitor.observer import Monitor
from hpcmass.serve.batcher import Batcher, Job, Outputs
from hpcmass.serve.exchange import BINARY, JSON, TEXT, Exchange
from hpcmass.serve.interfaces import Refused
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.openapi import document
from hpcmass.serve.protocol import Schema
from hpcmass.serve.rate import Rate, turned_away
from hpcmass.serve.tokens import Tokens

log = logging.getLogger("hpcmass.serve")

_OPEN = {b"/v2/health/live", b"/v2/health/ready"}
_SERVER = {"name": "hpcmass", "version": __version__, "extensions": ["binary_tensor_data"]}


class App:
    """One model behind the Open Inference Protocol.

    Args:
        name: The model's.
        version: The version's, as text.
        metrics: What is counted.
        tokens: Who is let in; None: everybody.
        rate: How many requests one of them may send; None: any number.

    Attributes:
        ready: Whether `v2/health/ready` says so; requests are answered whenever there is a model.
        monitor: Sees requests and answers, and takes labels; None: nobody does.
    """

    def __init__(
        self, name: str, version: str, metrics: Metrics, tokens: Tokens | None, rate: Rate | None = None
    ) -> None:
        self.name, self.version, self.metrics, self.tokens, self.rate = name, version, metrics, tokens, rate
        self.ready = False
        self.monitor: Monitor | None = None
        self.gauges: Callable[[], dict[str, float]] = dict
        self.info: dict[str, str] = {"model": name, "version": version}
        self._batcher: Batcher | None = None
        self._schema: Schema | None = None
        self._runtime: dict[str, Any] = {}
        model = f"/v2/models/{name}".encode()
        both = (model, model + f"/versions/{version}".encode())
        self._infer = {path + b"/infer" for path in both}
        self._labels = {path + b"/labels" for path in both}
        self._known = {
            b"/v2": self._about,
            b"/v2/": self._about,
            b"/v2/health/live": self._live,
            b"/v2/health/ready": self._is_ready,
            b"/metrics": self._metrics,
            b"/openapi.json": self._document,
            **dict.fromkeys(both, self._model),
            **{path + b"/ready": self._is_ready for path in both},
        }

    def load(self, schema: Schema, batcher: Batcher, runtime: dict[str, Any]) -> None:
        """The model is here and warm; `runtime` is what is told of its choice."""
        self._schema, self._batcher, self._runtime = schema, batcher, runtime
        self.ready = True

    @property
    def waiting(self) -> bool:
        """Whether requests wait or are computed."""
        return self._batcher is not None and not self._batcher.idle

    # -- a request ----------------------------------------------------------------------------------------
    def check(self, exchange: Exchange) -> Refused | None:
        """Say no to a head, where that can be seen from it."""
        path = exchange.path = exchange.path.partition(b"?")[0]
        if path not in _OPEN:
            error = turned_away(exchange, self.tokens, self.rate, "this replica")
            if error is not None:
                return error
        infer = path in self._infer
        posts = infer or (path in self._labels and self.monitor is not None)
        if not posts and path not in self._known:
            said = path[:100].decode("ascii", "replace")
            return Refused(404, f"there is nothing at {said}; the model is /v2/models/{self.name}")
        if (error := exchange.misused(posts)) is not None:
            return error
        if infer and self._batcher is None:
            return Refused(503, "the model is being loaded", retry_after=1)
        return None

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, or give it to the model; whatever goes wrong is this request's error."""
        try:
            if exchange.path in self._infer:
                self._take(exchange)
            elif exchange.path in self._labels:
                self._label(exchange)
            else:
                self._known[exchange.path](exchange)
        except Refused as error:
            exchange.refuse(error)
        except Exception:
            log.exception("a request failed")
            exchange.refuse(Refused(500, "the replica failed at this request"))

    def _take(self, exchange: Exchange) -> None:
        schema, batcher = self._schema, self._batcher
        assert schema is not None
        assert batcher is not None
        begun = perf_counter()
        body = exchange.body[0] if len(exchange.body) == 1 else b"".join(exchange.body)
        said = exchange.headers.get(b"inference-header-content-length")
        if said is not None and not (said.isdigit() and len(said) < 19):
            raise Refused(400, "Inference-Header-Content-Length is no number")
        request = schema.parse(body, None if said is None else int(said))
        monitor = self.monitor
        taken = None if monitor is None else monitor.take(request.arrays, request.rows)

        def done(outputs: Outputs | None, error: Refused | None) -> None:
            if outputs is None or error is not None:
                exchange.refuse(error or Refused(500, "there are no outputs"))
                return
            try:
                parts, json_bytes = schema.answer(request, outputs)
            except Exception:
                log.exception("an answer could not be written")
                exchange.refuse(Refused(500, "the model's outputs cannot be written"))
                return
            self.metrics.inferences += 1
            self.metrics.request_s.observe(perf_counter() - begun)
            if json_bytes is None:
                exchange.answer(200, parts)
            else:
                exchange.answer(200, parts, BINARY, b"Inference-Header-Content-Length: %d\r\n" % json_bytes)
            if monitor is not None:
                try:  # whoever looks on must not end a batch of which others wait for their part
                    monitor.done(taken, request.id, outputs)
                except Exception:
                    log.exception("the monitor failed at an answer")

        job = Job(request, done)
        batcher.submit(job)
        exchange.job = lambda: batcher.abandon(job)

    def _label(self, exchange: Exchange) -> None:
        """Take labels that come later: `{"id": …, "label": …}`, or a list of such."""
        assert self.monitor is not None
        try:
            said = orjson.loads(b"".join(exchange.body))
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        each = said if isinstance(said, list) else [said]
        if not all(isinstance(one, dict) for one in each):
            raise Refused(400, 'a label is an object with "id" and "label"')
        try:
            for identity, label in [check_label(one.get("id"), one.get("label")) for one in each]:
                self.monitor.label(identity, label)
        except DataError as error:
            raise Refused(400, error.message) from None
        _say(exchange, {"labels": len(each)})

    # -- the other addresses ------------------------------------------------------------------------------
    def _about(self, exchange: Exchange) -> None:
        _say(exchange, _SERVER)

    def _live(self, exchange: Exchange) -> None:
        _say(exchange, {"live": True})

    def _is_ready(self, exchange: Exchange) -> None:
        if not self.ready:
            raise Refused(503, "not ready", retry_after=1)
        _say(exchange, {"name": self.name, "ready": True})

    def _model(self, exchange: Exchange) -> None:
        if self._schema is None or self._batcher is None:
            raise Refused(503, "the model is being loaded", retry_after=1)
        _say(exchange, self._schema.metadata(self._batcher.runner.platform, self._runtime))

    def _document(self, exchange: Exchange) -> None:
        if self._schema is None:
            raise Refused(503, "the model is being loaded", retry_after=1)
        _say(exchange, document(self._schema, self.tokens is not None))

    def _metrics(self, exchange: Exchange) -> None:
        batcher = self._batcher
        own = {"ready": float(self.ready)}
        if self.rate is not None:
            own |= {"rate_limited_total": float(self.rate.refused), "rate_clients": float(len(self.rate))}
        if batcher is not None:
            own |= {
                "queue_requests": float(len(batcher)),
                "queue_rows": float(batcher.rows),
                "batch_limit_rows": float(batcher.pace.limit),
                "capacity_rows_per_second": 1.0 / max(batcher.pace.row_s, 1e-9),
            }
        text = self.metrics.text(self.info, {**own, **self.gauges()})
        exchange.answer(200, [text.encode()], TEXT)


def _say(exchange: Exchange, value: Any) -> None:
    exchange.answer(200, [orjson.dumps(value)], JSON)
