"""What a client tells whoever wants to see inside: ``on_event``, and the log.

A hook is called in the thread or task that caused the event, with nothing
locked. It should be quick. What it raises is logged and goes no further: to look
at a request must not make it fail.

    def on_event(event):
        if event.kind == "reply":
            latency.record(event.seconds)

With OpenTelemetry, a span for each attempt (``request`` opens it)::

    tracer = opentelemetry.trace.get_tracer("app")
    spans = {}

    def on_event(event):
        if event.kind == "request":
            spans[event.request] = tracer.start_span(
                "nbnet.request",
                kind=SpanKind.CLIENT,
                attributes={"server.address": event.peer, "nbnet.size": event.size},
            )
        elif event.kind in ("reply", "failed"):
            span = spans.pop(event.request)
            if event.error is not None:
                span.record_exception(event.error)
            span.end()
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from nbclient.errors import NbclientError

log = logging.getLogger("nbclient")

Kind: TypeAlias = Literal["connect", "request", "reply", "failed", "retry", "close"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        kind: ``connect`` (a connection was made, or could not be: then with the
            error), ``request`` (an attempt begins), ``reply`` and ``failed`` (how
            it ended), ``retry`` (another one follows, after ``seconds``),
            ``close`` (a connection was closed).
        peer: the server, as a target is written; empty if none was chosen.
        seconds: how long it took; of ``retry``, the pause that follows; of
            ``request``, 0.
        size: bytes of the payload, of ``request`` and ``reply``; otherwise 0.
        request: a number that the events of one request share; 0 for none. The
            requests of ``request_many`` are numbered as well.
        error: what went wrong, if anything did.

    >>> Event("reply", "127.0.0.1:6789", seconds=0.002, size=3, request=1).kind
    'reply'
    """

    kind: Kind
    peer: str
    seconds: float = 0.0
    size: int = 0
    request: int = 0
    error: NbclientError | None = None


Hook: TypeAlias = Callable[[Event], object]


class Observer:
    """Tells the hook and the log.

    Args:
        hook: what to call with each event; None for nothing.

    Attributes:
        active: whether anybody listens: if not, no event need be made.
    """

    __slots__ = ("_hook", "active")

    def __init__(self, hook: Hook | None) -> None:
        self._hook = hook
        self.active: Final = hook is not None

    def __call__(self, event: Event) -> None:
        """Something happened."""
        if event.kind not in ("request", "reply"):
            text = f"{event.kind}: {event.error}" if event.error else event.kind
            log.debug("%s: %s", event.peer, text)
        if self._hook is None:
            return
        try:
            self._hook(event)
        except Exception:  # whatever the user's code raises
            log.exception("the hook on_event failed")


class Watch:
    """Tells of the requests of one ``request_many``.

    Args:
        observer: whom to tell.
        peer: the server.
        numbers: gives each request its number.
        clock: seconds.
    """

    __slots__ = ("_clock", "_numbers", "_observer", "_peer", "_sent")

    def __init__(
        self,
        observer: Observer,
        peer: str,
        numbers: Iterator[int],
        clock: Callable[[], float],
    ) -> None:
        self._observer = observer
        self._peer = peer
        self._numbers = numbers
        self._clock = clock
        self._sent: deque[tuple[int, float]] = deque()  # number and time of those unanswered

    def sent(self, payloads: Iterable[bytes]) -> None:
        """These are about to be sent."""
        now = self._clock()
        for payload in payloads:
            number = next(self._numbers)
            self._sent.append((number, now))
            self._observer(Event("request", self._peer, size=len(payload), request=number))

    def replied(self, reply: bytes) -> None:
        """The reply to the oldest is given to the caller."""
        number, since = self._sent.popleft()
        seconds = self._clock() - since
        self._observer(Event("reply", self._peer, seconds, size=len(reply), request=number))

    def failed(self, error: NbclientError | None) -> None:
        """There will be no reply to the others."""
        while self._sent:
            number, since = self._sent.popleft()
            seconds = self._clock() - since
            self._observer(Event("failed", self._peer, seconds, request=number, error=error))
