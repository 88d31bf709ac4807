"""A server in memory, for the tests of programs that use ``Client`` or ``AsyncClient``.

>>> from nbclient import Client
>>> server = FakeServer(bytes.upper)
>>> server.inject(Fault(delay=1.5), None, Fault(cut=7))  # the next three replies
>>> with Client(connect=server.connect, retries=0) as client:
...     client.request(b"abc"), client.request(b"de")
(b'ABC', b'DE')
>>> server.requests, server.open
([b'abc', b'de'], 0)

``AsyncClient(connect=server.open_stream)`` is the same for trio.

No sockets, no threads, no tasks: a request is answered inside the call that
sends it. Rules kept here:

* on the wire it is the real server: the same frames and line ends are taken,
  replies are in order and have 0 to 99,999 bytes; broken frames, and a handler
  that raises or returns something unfit, cost their connection, after the
  replies before, and nothing of the fault is told; a peer that ends its side
  gets all its replies, then the end. While too many replies are unread, no more
  requests are taken;
* once the server has ended a connection, what is sent to it is thrown away;
  after a reset sending fails;
* **time is trio's or simulated.** The streams for trio wait by trio's clock, so
  that a ``MockClock`` works. The blocking ones never wait: a wait that fits in
  the timeout is over at once; another raises ``TimeoutError`` at once and may be
  repeated, as if no time had passed. The client's own clock knows nothing of
  that: waits of several calls do not add up to a timeout. A wait without timeout
  for what never comes raises ``WouldHangError``;
* the rule for cancelling is that of real streams: a receive that is cancelled
  or timed out has lost nothing; a send has passed on none, some or all of its
  bytes: ``FakeServer.clog`` says how many;
* many threads may use one server, each with a stream of its own; streams for
  trio, and what acts on them, belong to the thread of trio.

In the rooms: ``faults`` is what can be wrong, ``server`` and ``connection`` are
the server's side, ``streams`` and ``trio_streams`` the client's. The last one
is imported when trio is asked for and not before.
"""

from __future__ import annotations

from nbclient.testing.connection import FakeConnection
from nbclient.testing.faults import SILENT, Fault
from nbclient.testing.server import FakeServer
from nbclient.testing.streams import FakeStream, WouldHangError

__all__ = ["SILENT", "FakeConnection", "FakeServer", "FakeStream", "Fault", "WouldHangError"]
