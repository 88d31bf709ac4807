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
from collections.abc import Callable
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
        request: a number that the events of one request share; 0 for none.
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
            log.debug("%s: %s %s", event.peer, event.kind, event.error or "")
        if self._hook is None:
            return
        try:
            self._hook(event)
        except Exception:  # whatever the user's code raises
            log.exception("the hook on_event failed")
