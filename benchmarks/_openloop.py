"""A client process that sends requests at times drawn beforehand, whatever becomes of those before them.

    python benchmarks/_openloop.py PORT PATH BODY_FILE RATE SECONDS CONNECTIONS SEED [closed] [HEADER ...]

Arrivals are Poisson, spread over connections that stay open; a request whose connection still waits is sent
all the same, behind the other, and its latency counts from the moment it was due. `closed`: each
connection sends its next request when it has an answer, RATE is not used. Prints one line of JSON:
`rate` (answers with 200 a second), `p50_ms`, `p99_ms`, `sent`, `ok`, `others` (other answers).
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import deque
from pathlib import Path

import uvloop


class Client(asyncio.Protocol):
    def __init__(self, results: list[tuple[float, bool]], again: bytes | None) -> None:
        self.results, self.again = results, again
        self.due: deque[float] = deque()
        self.buffer = b""
        self.length = -1
        self.end = float("inf")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due.append(due)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head = self.buffer.find(b"\r\n\r\n")
            if head < 0:
                return
            top = self.buffer[:head].lower()
            at = top.find(b"\r\ncontent-length:") + 17
            size = head + 4 + int(top[at : (top + b"\r\n").find(b"\r\n", at)])
            if len(self.buffer) < size:
                return
            good = self.buffer.startswith(b"HTTP/1.1 200")
            self.buffer = self.buffer[size:]
            now = time.perf_counter()
            self.results.append((now - self.due.popleft(), good))
            if self.again is not None and now < self.end:
                self.send(self.again, now)


async def main() -> None:
    port, path, file, rate, seconds, connections, seed = sys.argv[1:8]
    rest = sys.argv[8:]
    closed = rest[:1] == ["closed"]
    body = Path(file).read_bytes()
    lines = "".join(f"{one}\r\n" for one in rest[closed:])
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
    results: list[tuple[float, bool]] = []
    gc.disable()  # its pauses would be counted as the server's
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(int(connections)):
        _, client = await loop.create_connection(
            lambda: Client(results, request if closed else None), "127.0.0.1", int(port)
        )
        clients.append(client)
    begun = time.perf_counter()
    sent = 0
    if closed:
        for client in clients:
            client.end = begun + float(seconds)
            client.send(request, time.perf_counter())
        await asyncio.sleep(float(seconds))
    else:
        draw = random.Random(int(seed))
        due = begun
        while due < begun + float(seconds):
            due += draw.expovariate(float(rate))
            # Timers of the loop are of whole milliseconds, which would make bursts of what is no burst.
            while (wait := due - time.perf_counter()) > 0:
                time.sleep(min(wait, 0.0002))
                await asyncio.sleep(0)
            # The one that waits least: as a pool of connections would choose.
            client = min(draw.sample(clients, 2), key=lambda one: len(one.due))
            client.send(request, due)
            sent += 1
    took = time.perf_counter() - begun
    end = time.perf_counter() + 5
    while any(client.due for client in clients) and time.perf_counter() < end:
        await asyncio.sleep(0.005)
    ok = sorted(each for each, good in results if good)
    at = lambda share: 1e3 * ok[min(len(ok) - 1, int(share * len(ok)))] if ok else None  # noqa: E731
    said = {"rate": len(ok) / took, "p50_ms": at(0.5), "p99_ms": at(0.99), "sent": sent or len(results)}
    print(json.dumps({**said, "ok": len(ok), "others": len(results) - len(ok)}))


if __name__ == "__main__":
    uvloop.run(main())
