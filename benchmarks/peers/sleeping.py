"""``nbnet`` on the article's first design: sleep, then try every connection.

    python benchmarks/peers/sleeping.py serve --port PORT [options of nbnet serve]

Only to be measured. The server is the bundled one; what it asks for events is a
poller that knows nothing, sleeps a millisecond and names everybody. That works,
since an event is but a hint to the server, and shows what it costs.
"""

from __future__ import annotations

import time

from nbnet.pollers import POLLERS, READ, WRITE

NAP = 0.001
"""Seconds."""


class SleepPoller:
    """Names whatever is watched, after a nap."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch ``fd`` for the events of the mask."""
        self._masks[fd] = eventmask & (READ | WRITE)

    modify = register

    def unregister(self, fd: int, /) -> None:
        """Forget ``fd``."""
        del self._masks[fd]

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:  # noqa: ARG002
        """Sleep, if there is time, and name everybody."""
        if timeout:
            time.sleep(NAP)
        return [event for event in self._masks.items() if event[1]]

    def close(self) -> None:
        """Nothing is held."""


if __name__ == "__main__":
    POLLERS["epoll"] = SleepPoller
    from nbnet.cli import main

    main()
