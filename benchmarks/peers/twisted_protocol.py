"""The framed reverse server on Twisted's protocols and its epoll reactor.

    pip install twisted
    python benchmarks/peers/twisted_protocol.py [PORT]

Only to be measured.
"""

from __future__ import annotations

from framed import BACKLOG, Answers, announce, get_ready, port_asked_for
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol


class Framed(Protocol):  # type: ignore[misc]  # no part of the project needs Twisted
    """One connection. A peer that does not read is not read from."""

    def connectionMade(self) -> None:  # noqa: N802
        """Have the transport stop its own reading while it has much to write."""
        self._answers = Answers()
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Answer the frames that these bytes complete."""
        answers = self._answers
        if replies := answers.feed(data):
            self.transport.write(replies)
        if answers.broken:
            self.transport.unregisterProducer()
            self.transport.loseConnection()  # when what was written is sent


def main(port: int = 0) -> None:
    """Serve on that port of the loopback for ever."""
    listening = reactor.listenTCP(
        port, Factory.forProtocol(Framed), backlog=BACKLOG, interface="127.0.0.1"
    )
    get_ready()
    announce(listening.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main(port_asked_for())
