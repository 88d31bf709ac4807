"""Verified framed requests by locust: a user with a socket, as its documentation shows.

    pip install locust
    python benchmarks/peers/locust_user.py PORT USERS SECONDS [IN_FLIGHT [SIZE]]

Only to be measured. Prints "started" once all users are there, and measures then;
its last line is JSON.
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import sys
import time
from typing import Any

# locust patches the standard library, so it comes before whatever opens sockets.
from locust import User, constant, task
from locust.env import Environment

import gevent  # isort: skip
import socket  # isort: skip

from framed import frame, reverse  # isort: skip

PORT, USERS, SECONDS = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
IN_FLIGHT = int(sys.argv[4]) if len(sys.argv) > 4 else 1
SIZE = int(sys.argv[5]) if len(sys.argv) > 5 else 3
PAYLOADS = [random.Random(number).randbytes(SIZE) for number in range(IN_FLIGHT)]
REQUESTS = b"".join(map(frame, PAYLOADS))
REPLIES = b"".join(frame(reverse(payload)) for payload in PAYLOADS)


class Framed(User):  # type: ignore[misc]  # no part of the project needs locust
    """Asks, compares the replies, and asks again; each reply is an event of locust's."""

    wait_time = constant(0)
    connected = 0

    def on_start(self) -> None:
        """Connect. By number: gevent looks names up in a few threads, one after the other."""
        self.peer = socket.socket()
        self.peer.connect(("127.0.0.1", PORT))
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Framed.connected += 1

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """As many requests at once as are to be in flight."""
        began = time.perf_counter()
        self.peer.sendall(REQUESTS)
        got = b""
        while len(got) < len(REPLIES) and (data := self.peer.recv(65_536)):
            got += data
        error = None if got == REPLIES else ValueError(f"wrong replies {got[:40]!r}")
        for _ in range(IN_FLIGHT):
            self.environment.events.request.fire(
                request_type="framed",
                name="ask",
                response_time=(time.perf_counter() - began) * 1e3,
                response_length=SIZE,
                exception=error,
                context={},
            )


def main() -> None:
    """Start all users, measure, print."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    logging.getLogger().setLevel(logging.ERROR)
    environment = Environment(user_classes=[Framed])
    runner: Any = environment.create_local_runner()
    runner.start(USERS, spawn_rate=USERS)
    while Framed.connected < USERS or not environment.stats.total.num_requests:
        gevent.sleep(0.01)  # stats are new once the runner has started
    total = environment.stats.total
    print("started", flush=True)
    before, failed, cpu, began = (
        total.num_requests,
        total.num_failures,
        time.process_time(),
        time.perf_counter(),
    )
    gevent.sleep(SECONDS)
    document = {
        "requests": total.num_requests - before,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }
    if total.num_failures > failed:
        sys.exit(f"{total.num_failures - failed} wrong replies")
    print(json.dumps(document), flush=True)
    os._exit(0)  # to stop thousands of users takes longer than all else


if __name__ == "__main__":
    main()
