"""A request leaves nothing behind for the garbage collector, whose pauses every other request would feel."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Mapping

import numpy as np
import pytest
import uvloop

from hpcmass.serve.app import App
from hpcmass.serve.batcher import Batcher
from hpcmass.serve.http import Server
from hpcmass.serve.interfaces import Field, Interface, Limits
from hpcmass.serve.metrics import Metrics
from hpcmass.serve.pace import Pace
from hpcmass.serve.protocol import Schema

REQUESTS = 300


class Doubler:
    platform = "test"
    interface = Interface((Field("x", "float32", (4,)),), (Field("y", "float32", (4,)),))

    def enter(self, threads: int) -> None:
        pass

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if inputs["x"][0, 0] == 13:
            raise RuntimeError("unlucky")
        return {"y": 2 * inputs["x"]}


@pytest.mark.parametrize("first", [1, 13, None], ids=["answered", "failed", "refused"])
@pytest.mark.parametrize("inline", [True, False])
def test_no_circles_are_left(first: int | None, inline: bool) -> None:
    values = [first, 0, 0, 0] if first is not None else ["x"] * 4
    one = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": values}
    body = json.dumps({"inputs": [one]}).encode()
    request = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def run() -> int:
        limits, metrics, runner = Limits(), Metrics(), Doubler()
        app = App("m", "1", metrics, None)
        server = Server(app, limits, metrics)
        pace = Pace(1.0, 8)
        pace.measure(lambda rows: 1e-4 * rows)
        batcher = Batcher(runner, pace, limits, metrics, inline=inline)
        app.load(Schema("m", "1", runner.interface, 10), batcher, {})
        listening = await asyncio.get_running_loop().create_server(server.connection, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())

        async def ask(many: int) -> None:
            for _ in range(many):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(size)

        try:
            await ask(20)
            gc.collect()
            gc.disable()
            await ask(REQUESTS)
            return gc.collect()
        finally:
            gc.enable()
            writer.close()
            listening.close()
            batcher.close()

    assert uvloop.run(run()) < REQUESTS
