"""The states of a served connection and the moves between them, as data.

No code but ``Connection`` moves a connection, and it moves only along
``TRANSITIONS``: an event that the table does not list for a state is a bug and
raises ``KeyError``. What the loop asks the poller for follows from the state
(``INTEREST``), but for what TLS wants out of turn.
"""

from __future__ import annotations

import enum
from typing import Final

from nbnet.pollers import READ, WRITE


class State(enum.Enum):
    """What a connection is doing."""

    INTRODUCING = "introducing"
    """A proxy is to say who the client is (``nbnet.proxy``); nothing else is read."""
    HANDSHAKING = "handshaking"
    """TLS is being agreed on; no request is read."""
    READING = "reading"
    """Requests are read and answered; every reply so far went to the kernel."""
    BUSY = "busy"
    """Requests that were read wait for their turn; nothing more is read."""
    WORKING = "working"
    """Threads work on requests that were read; nothing more is read."""
    DELIVERING = "delivering"
    """Threads work on requests, and the kernel refused part of the replies made
    so far; no more work is given out."""
    WRITING = "writing"
    """The kernel refused part of the replies; requests are still read."""
    PAUSED = "paused"
    """So many replies wait for the peer that no request is read or answered."""
    FLUSHING = "flushing"
    """No request will be answered again; the replies earned are being sent."""
    LINGERING = "lingering"
    """All is sent and the write side shut; input is thrown away until the peer
    closes, because closing with unread input would cut off what it has not
    read yet (the kernel sends RST and drops the queue)."""
    CLOSED = "closed"
    """Nothing more happens; the socket is closed after the batch of events."""


class Event(enum.Enum):
    """What happens to a connection."""

    INTRODUCED = "introduced"
    """The proxy has said who the client is; requests may come."""
    TO_AGREE = "to agree"
    """It has said so, and TLS is to be agreed on before requests come."""
    AGREED = "agreed"
    """TLS is agreed on."""
    MORE = "more"
    """More requests were read than may be answered in one turn."""
    HANDED_OUT = "handed out"
    """Requests that were read are with the threads."""
    CAUGHT_UP = "caught up"
    """The last request that waited, or that threads had, is answered."""
    BLOCKED = "blocked"
    """The kernel took only part of the replies."""
    HIGH = "high"
    """The replies waiting went over the high-water mark."""
    LOW = "low"
    """The replies waiting fell under the low-water mark."""
    FLUSHED = "flushed"
    """The last waiting reply went to the kernel."""
    FAULT = "fault"
    """The peer broke the protocol, or the handler failed on a request, or TLS
    could not be agreed on, or no proxy's header came where one is required."""
    EOF = "eof"
    """The peer will send no more."""
    STOP = "stop"
    """The server is stopping while something is owed to the peer."""
    MOVED = "moved"
    """Another process serves the connection from here on."""
    LOST = "lost"
    """The connection was reset, or has to go at once."""


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.INTRODUCING, Event.INTRODUCED): State.READING,
    (State.INTRODUCING, Event.TO_AGREE): State.HANDSHAKING,
    # To a proxy that does as it should not, nothing is owed.
    (State.INTRODUCING, Event.FAULT): State.CLOSED,
    (State.INTRODUCING, Event.EOF): State.CLOSED,
    (State.INTRODUCING, Event.MOVED): State.CLOSED,
    (State.INTRODUCING, Event.LOST): State.CLOSED,
    (State.HANDSHAKING, Event.AGREED): State.READING,
    (State.HANDSHAKING, Event.FAULT): State.LINGERING,
    (State.HANDSHAKING, Event.LOST): State.CLOSED,
    (State.READING, Event.MORE): State.BUSY,
    (State.READING, Event.HANDED_OUT): State.WORKING,
    (State.READING, Event.BLOCKED): State.WRITING,
    (State.READING, Event.FAULT): State.FLUSHING,
    (State.READING, Event.EOF): State.FLUSHING,
    (State.READING, Event.STOP): State.FLUSHING,
    (State.READING, Event.MOVED): State.CLOSED,
    (State.READING, Event.LOST): State.CLOSED,
    (State.BUSY, Event.CAUGHT_UP): State.READING,
    (State.BUSY, Event.HANDED_OUT): State.WORKING,
    (State.BUSY, Event.BLOCKED): State.PAUSED,
    (State.BUSY, Event.FAULT): State.FLUSHING,
    (State.BUSY, Event.MOVED): State.CLOSED,
    (State.BUSY, Event.LOST): State.CLOSED,
    (State.WORKING, Event.CAUGHT_UP): State.READING,
    (State.WORKING, Event.BLOCKED): State.DELIVERING,
    (State.WORKING, Event.FAULT): State.FLUSHING,
    (State.WORKING, Event.LOST): State.CLOSED,
    (State.DELIVERING, Event.FLUSHED): State.WORKING,
    (State.DELIVERING, Event.MORE): State.PAUSED,
    (State.DELIVERING, Event.CAUGHT_UP): State.WRITING,
    (State.DELIVERING, Event.FAULT): State.FLUSHING,
    (State.DELIVERING, Event.LOST): State.CLOSED,
    (State.WRITING, Event.MORE): State.PAUSED,
    (State.WRITING, Event.HIGH): State.PAUSED,
    (State.WRITING, Event.FLUSHED): State.READING,
    (State.WRITING, Event.FAULT): State.FLUSHING,
    (State.WRITING, Event.EOF): State.FLUSHING,
    (State.WRITING, Event.STOP): State.FLUSHING,
    (State.WRITING, Event.MOVED): State.CLOSED,
    (State.WRITING, Event.LOST): State.CLOSED,
    (State.PAUSED, Event.LOW): State.WRITING,
    (State.PAUSED, Event.FLUSHED): State.READING,
    (State.PAUSED, Event.MORE): State.BUSY,
    (State.PAUSED, Event.STOP): State.FLUSHING,
    (State.PAUSED, Event.MOVED): State.CLOSED,
    (State.PAUSED, Event.LOST): State.CLOSED,
    (State.FLUSHING, Event.FLUSHED): State.LINGERING,
    (State.FLUSHING, Event.EOF): State.CLOSED,
    (State.FLUSHING, Event.LOST): State.CLOSED,
    (State.LINGERING, Event.EOF): State.CLOSED,
    (State.LINGERING, Event.LOST): State.CLOSED,
}
"""The state that follows on an event; a pair that is missing cannot happen."""

INTEREST: Final[dict[State, int]] = {
    State.INTRODUCING: READ,
    State.HANDSHAKING: READ,
    State.READING: READ,
    # Asking for less would cost a call to take it back in the next turn.
    State.BUSY: READ,
    # The same, but it may last: the first event that comes all the same makes the
    # loop leave the socket alone.
    State.WORKING: 0,
    State.DELIVERING: WRITE,
    State.WRITING: READ | WRITE,
    State.PAUSED: WRITE,
    State.FLUSHING: WRITE,
    State.LINGERING: READ,
    State.CLOSED: 0,
}
"""The poller events that each state waits for."""

READS: Final = frozenset({State.READING, State.WRITING, State.LINGERING})
"""The states in which requests, or what is thrown away, are read."""

MOVABLE: Final = frozenset(
    {State.INTRODUCING, State.READING, State.BUSY, State.WRITING, State.PAUSED}
)
"""The states in which another process can take a connection over: nothing of it
is with a thread, and it is not ending."""
