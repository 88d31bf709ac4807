"""What makes a waiting event loop return from its poller."""

from __future__ import annotations

import contextlib
import socket


class WakeUp:
    """A pair of connected sockets: setting one end makes the other readable.

    ``set`` may be called from any thread and from signal handlers; the end that
    it writes to also serves ``signal.set_wakeup_fd`` (``signal_fd``).

    >>> wake_up = WakeUp()
    >>> wake_up.set(); wake_up.set(); wake_up.clear()
    >>> wake_up.close()
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """Make the reading end readable; nothing happens where it already is."""
        # Full of earlier calls, it is readable enough; and nobody waits once it
        # is closed, which another thread may have done just now.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Make the reading end unreadable until the next ``set``."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def fileno(self) -> int:
        """The reading end, for a poller."""
        return self._reader.fileno()

    def signal_fd(self) -> int:
        """The writing end, for ``signal.set_wakeup_fd``."""
        return self._writer.fileno()

    def close(self) -> None:
        """Close both ends; calling it again does nothing."""
        self._reader.close()
        self._writer.close()
