"""Servers for the tests of the client: a real one, and ones that act as told."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from support.fronts import Open, open_blocking

from nbclient import AsyncClient
from nbnet.notation import Target

Step = tuple[str, bytes]
Script = list[Step]

PATIENCE = 20.0  # seconds before a script that gets nowhere fails


@pytest.fixture(params=["sync", "trio"])
def connect(request: pytest.FixtureRequest) -> Open:
    """Opens a client of the front under test; takes what its constructor takes."""
    return AsyncClient if request.param == "trio" else open_blocking


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What the step "gate" of a script waits for."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def scripted(gate: threading.Event) -> Iterator[Callable[..., Target]]:
    """Starts servers that play one script for each connection, in turn.

    A script is a list of steps: ("expect", bytes) reads exactly these,
    ("send", bytes) writes them, ("eof", b"") waits until the client has closed,
    ("gate", b"") waits for the event of that name, ("reset", b"") closes with a
    reset. At the end the connection is closed.
    """
    with contextlib.ExitStack() as stack:
        yield lambda *scripts: stack.enter_context(_serving(scripts, gate))


@contextlib.contextmanager
def _serving(scripts: tuple[Script, ...], gate: threading.Event) -> Iterator[Target]:
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def run() -> None:
            try:
                for script in scripts:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(PATIENCE)
                        for step, data in script:
                            _play(connection, gate, step, data)
            except BaseException as error:  # for the test to raise
                failures.append(error)

        thread = threading.Thread(target=run, name="scripted server")
        thread.start()
        try:
            yield Target(*listener.getsockname())
        finally:
            # A test that failed may have left connections out: then this takes
            # as long as accept() has patience.
            thread.join()
    if failures:
        raise failures[0]


def _play(connection: socket.socket, gate: threading.Event, step: str, data: bytes) -> None:
    if step == "expect":
        got = b""
        while len(got) < len(data) and (more := connection.recv(len(data) - len(got))):
            got += more
        assert got == data
    elif step == "send":
        connection.sendall(data)
    elif step == "eof":
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    elif step == "gate":
        assert gate.wait(PATIENCE)
    else:
        assert step == "reset"
        # Closing with a linger time of 0 sends a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
