"""The framed reverse server as the background article draws it: states, and epoll for each.

    python benchmarks/peers/state_machine.py [PORT]

Only to be measured. A connection reads its header, then its payload, by reads of just
so many bytes; it is registered for writing to send its reply, and for reading again
after that. So a request costs two reads, one send, two changes of registration and
three waits, where one of each of read, send and wait would do.
"""

from __future__ import annotations

import enum
import select
import socket

from framed import BACKLOG, HEADER_SIZE, announce, frame, get_ready, port_asked_for, reverse


class State(enum.Enum):
    """What a connection does next."""

    HEADER = "header"
    PAYLOAD = "payload"
    WRITE = "write"


class Connection:
    """A peer and where it stands."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.expect_header()

    def expect_header(self) -> None:
        """Begin again."""
        self.state = State.HEADER
        self.missing = HEADER_SIZE
        self.got = b""
        self.unsent = b""


class Machine:
    """The loop, with a method for each state."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.poller = select.epoll()
        self.poller.register(listener, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.steps = {
            State.HEADER: self.read_header,
            State.PAYLOAD: self.read_payload,
            State.WRITE: self.write,
        }

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for fd, _ in self.poller.poll():
                if fd == self.listener.fileno():
                    self.accept()
                    continue
                connection = self.connections[fd]
                try:
                    self.steps[connection.state](connection)
                except BlockingIOError:
                    continue
                except OSError:
                    self.close(connection)

    def accept(self) -> None:
        """Take one connection."""
        peer, _ = self.listener.accept()
        peer.setblocking(False)
        self.connections[peer.fileno()] = Connection(peer)
        self.poller.register(peer, select.EPOLLIN)

    def read(self, connection: Connection) -> bool:
        """Read what is missing; whether all of it has come."""
        data = connection.peer.recv(connection.missing)
        if not data:
            raise ConnectionResetError
        connection.got += data
        connection.missing -= len(data)
        return not connection.missing

    def read_header(self, connection: Connection) -> None:
        """Five digits, and after them the payload."""
        if self.read(connection):
            if not connection.got.isdigit() or connection.got == b"00000":
                raise ConnectionAbortedError
            connection.missing = int(connection.got)
            connection.got = b""
            connection.state = State.PAYLOAD
            self.poller.modify(connection.peer, select.EPOLLIN)

    def read_payload(self, connection: Connection) -> None:
        """As many bytes, and after them the reply."""
        if self.read(connection):
            connection.unsent = frame(reverse(connection.got))
            connection.state = State.WRITE
            self.poller.modify(connection.peer, select.EPOLLOUT)

    def write(self, connection: Connection) -> None:
        """The reply, and after it the next header."""
        sent = connection.peer.send(connection.unsent)
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            connection.expect_header()
            self.poller.modify(connection.peer, select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        """Forget it."""
        del self.connections[connection.peer.fileno()]
        self.poller.unregister(connection.peer)
        connection.peer.close()


def main(port: int = 0) -> None:
    """Serve on that port of the loopback for ever."""
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    get_ready()
    announce(listener.getsockname()[1])
    Machine(listener).run()


if __name__ == "__main__":
    main(port_asked_for())
