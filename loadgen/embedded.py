"""The bundled server in a process of its own, for runs that name no target."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Final

from loadgen import children
from nbnet.machine import raise_fd_limit
from nbnet.notation import Address, parse_address

_QUIET: Final = "--quiet"


class EmbeddedServerError(RuntimeError):
    """The bundled server did not start; why stands on stderr."""


@contextlib.contextmanager
def embedded_server(*, quiet: bool = False) -> Iterator[Address]:
    """Start the bundled server on a free port of 127.0.0.1; stop it at the end.

    Args:
        quiet: whether it says nothing of clients that break the protocol.

    Raises:
        EmbeddedServerError: it did not start.
    """
    child = children.start("loadgen.embedded", *([_QUIET] if quiet else []))
    try:
        assert child.stdout is not None
        line = child.stdout.readline().decode()
        if not line:
            raise EmbeddedServerError("the bundled server did not start")
        yield parse_address(line.strip())
    finally:
        child.terminate()
        children.reap(child)


def main() -> None:
    """The child: serve until told to stop, the address on the first line of output."""
    children.die_with_parent()
    from nbnet import serve  # which the parent does without

    level = logging.ERROR if _QUIET in sys.argv else logging.WARNING
    logging.basicConfig(stream=sys.stderr, level=level, format="server: %(message)s")
    raise_fd_limit()
    with contextlib.suppress(BrokenPipeError):  # the parent has given up meanwhile
        serve(port=0, on_listening=lambda address: print(address, flush=True))


if __name__ == "__main__":
    main()
