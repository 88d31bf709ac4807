"""A wire between two machines that delays, loses and reorders packets. A program.

For kernels without ``sch_netem``: a TUN device in each of two network namespaces,
and this process in between, which reads IP packets from one and writes them to the
other. What it does to them has the words and the meaning of netem: each packet is
lost with a probability, or else delayed, but for a share that goes at once and so
overtakes those before it. TCP on both ends is the kernel's own, with its checksums,
retransmissions and timers.

    wire.py NAME OTHER_NAMESPACE

makes a device of this name here and there, says ``ready``, and goes on until its
standard input ends. A line there, ``SECONDS LOSS REORDER``, changes what it does
from then on; it is answered by ``ready``. Which packets it takes is drawn by lot
from a fixed seed.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import select
import struct
import sys
import time
from random import Random

PACKET = 65536
"""Bytes that a packet has at most."""
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000  # IFF_TUN | IFF_NO_PI
_CLONE_NEWNET = 0x40000000


def open_tun(name: str) -> int:
    """The other end of a new device of the namespace that this process is in."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
    return fd


def enter(namespace: str) -> None:
    """What ``os.setns`` does, from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(namespace, os.O_RDONLY)
    if libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(fd)


def relay(one: int, other: int, orders: int) -> None:
    """Carry packets between two devices until ``orders`` ends."""
    random = Random(1)
    delay = loss = reorder = 0.0
    under_way: list[tuple[float, int, int, bytes]] = []  # when, in which order, whereto, what
    number = 0
    across = {one: other, other: one}
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([one, other, orders], [], [], wait)
        now = time.monotonic()
        for fd in ready:
            if fd == orders:
                line = os.read(orders, 1000)
                if not line:
                    return
                delay, loss, reorder = map(float, line.split())
                print("ready", flush=True)
                continue
            try:
                packet = os.read(fd, PACKET)
            except BlockingIOError:
                continue
            if random.random() < loss:
                continue
            number += 1
            when = now if random.random() < reorder else now + delay
            heapq.heappush(under_way, (when, number, across[fd], packet))
        while under_way and under_way[0][0] <= time.monotonic():
            *_, to, packet = heapq.heappop(under_way)
            try:
                os.write(to, packet)
            except OSError:  # the device is down
                continue


def main() -> None:
    name, namespace = sys.argv[1:]
    one = open_tun(name)
    enter(namespace)
    other = open_tun(name)
    print("ready", flush=True)
    relay(one, other, sys.stdin.fileno())


if __name__ == "__main__":
    main()
