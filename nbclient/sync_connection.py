"""One connection of the blocking front. Used by ``nbclient.sync`` alone.

It belongs to one request, or to one ``request_many``, at a time; who has it
decides afterwards whether it may be used again (``in_step``).
"""

from __future__ import annotations

import math
import time
from typing import Final

from nbclient.dialing import Stream
from nbclient.errors import NbclientError
from nbclient.exchange import Ledger, sole_reply
from nbclient.pipeline import Pipeline
from nbclient.servers import Server
from nbclient.settings import Settings, lost

WORTH_WAITING: Final = 0.001
"""Seconds; the kernel cannot wait for much less."""


class Connection:
    """A stream, once it is connected, and what is outstanding on it."""

    __slots__ = (
        *("__weakref__", "_settings", "aborted", "counted"),
        *("idle", "in_step", "peer", "server", "stream"),
    )

    def __init__(self, server: Server, settings: Settings, idle: list[Connection]) -> None:
        self.server = server
        self.peer = server.name
        self.idle = idle  # where it waits for its next request
        self.in_step = True  # as long as no fault, and no byte of something, was left there
        self.stream: Stream | None = None
        self.aborted = False
        self.counted = True
        server.opened += 1
        self._settings = settings

    def __del__(self) -> None:
        # Ctrl-C may come when a connection is in nobody's hands: then it is gone,
        # and its place with it.
        self.forget()
        if self.stream is not None:
            self.stream.close()

    def forget(self) -> None:
        """It does not count as a connection to its server any more."""
        if self.counted:
            self.counted = False
            self.server.opened -= 1

    def ask(self, frame: bytes, deadline: float, limit: float) -> bytes:
        """Send a request and wait for its reply."""
        stream = self.stream
        assert stream is not None
        size = len(frame)
        sent = 0
        try:
            sent = stream.send(frame, _left(deadline))
            while sent < size:
                sent += stream.send(frame[sent:], _left(deadline))
            data = stream.receive(_left(deadline))
            reply = sole_reply(data)
            if reply is not None:
                return reply
            ledger = Ledger(self.peer)
            ledger.sent(1, size)
            while not (replies := ledger.receive(data)) and ledger.fault is None:
                data = stream.receive(_left(deadline))
        except OSError as error:
            raise self._failed(error, limit, maybe_executed=sent > 0) from error
        if ledger.fault is not None:
            # A reply with more behind it may not be the right one.
            raise self._fault(ledger)
        self.in_step = ledger.idle
        return replies[0]

    def send_many(self, pipeline: Pipeline, deadline: float) -> bool:
        """Send what is to go; whether more can be sent later."""
        assert self.stream is not None
        rest = memoryview(pipeline.take())
        try:
            while rest:
                rest = rest[self.stream.send(rest, _left(deadline)) :]
        except TimeoutError as error:
            raise self._failed(error, self._settings.timeout, maybe_executed=True) from error
        except OSError:
            # Replies sent before may still be there to be read, and reading will
            # tell of the end.
            return False
        return True

    def receive_many(self, pipeline: Pipeline, deadline: float, *, wait: bool) -> list[bytes]:
        """The replies that come next; none if they take longer than the payloads do.

        Args:
            wait: whether to wait for one, as no more can be sent without.
        """
        assert self.stream is not None
        if pipeline.fault is not None:
            raise self._fault(pipeline)
        if not wait:
            patience = pipeline.patience
            if patience < WORTH_WAITING and not self.stream.readable():
                return []
            deadline = min(deadline, time.monotonic() + max(patience, WORTH_WAITING))
        try:
            while True:
                replies = pipeline.receive(self.stream.receive(_left(deadline)))
                if replies:
                    return replies
                if pipeline.fault is not None:
                    raise self._fault(pipeline)
        except OSError as error:
            if not wait and isinstance(error, TimeoutError) and error.errno is None:
                return []
            raise self._failed(error, self._settings.timeout, maybe_executed=True) from error

    def abort(self) -> None:
        """Let whoever waits for it find out that the client was closed."""
        self.aborted = True
        if self.stream is not None:
            self.stream.abort()

    def _failed(self, error: OSError, limit: float, *, maybe_executed: bool) -> NbclientError:
        if self.aborted:
            return self._settings.closed(self.peer, maybe_executed=maybe_executed)
        if isinstance(error, TimeoutError) and error.errno is None:
            return self._settings.timed_out(limit, self.peer, maybe_executed=maybe_executed)
        return lost(self.peer, error, maybe_executed=maybe_executed)

    def _fault(self, ledger: Ledger) -> NbclientError:
        if self.aborted:
            return self._settings.closed(self.peer, maybe_executed=True)
        return ledger.failure(maybe_executed=True)


def _left(deadline: float) -> float | None:
    """The time left, as streams take it.

    Raises:
        TimeoutError: there is none.
    """
    if deadline == math.inf:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
