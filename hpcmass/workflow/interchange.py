"""Questions to Parsl's interchange that end when it does; Parsl's own client waits for its answer for ever."""

from __future__ import annotations

import subprocess
from typing import Any

from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError
from parsl.executors.high_throughput.zmq_pipes import CommandClient

UNANSWERED = (CommandClientBadError, CommandClientTimeoutError)
_SLICE_MS = 500


def watch_answers(executor: HighThroughputExecutor) -> None:
    """Let all that an executor asks its interchange, which is running by now, end with it."""
    client, process = executor.command_client, executor.interchange_proc
    assert process is not None
    client.run = Questions(client, process)  # type: ignore[method-assign]


class Questions:
    """Takes the place of `CommandClient.run`."""

    def __init__(self, client: CommandClient, interchange: subprocess.Popen[Any]) -> None:
        self._client, self._interchange = client, interchange

    def __call__(self, message: Any, max_retries: int = 3, timeout_s: float | None = None) -> Any:
        """The interchange's answer.

        Args:
            message: What Parsl asks.
            max_retries: As of Parsl's method, and of no use there either.
            timeout_s: As of Parsl's; here an answer is waited for as long as there is an interchange.

        Raises:
            CommandClientTimeoutError: The interchange has ended.
            CommandClientBadError: It had before.
        """
        client = self._client
        with client._lock:
            if not client.ok:
                raise CommandClientBadError()
            self._check()
            client.zmq_socket.send_pyobj(message, copy=True)
            while not client.zmq_socket.poll(_SLICE_MS):
                self._check()
            return client.zmq_socket.recv_pyobj()

    def _check(self) -> None:
        if self._interchange.poll() is not None:
            self._client.ok = False  # Its socket waits for an answer that does not come.
            raise CommandClientTimeoutError("Parsl's interchange has ended")
