"""PROXY headers as proxies write them, made independently of what reads them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, TCP6, UNIX = 0x00, 0x11, 0x21, 0x31


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def addresses(family: int, source: str, port: int) -> bytes:
    """The block of addresses of a family; the destination is always the same."""
    if family == UNIX:
        return source.encode().ljust(108, b"\0") + b"/run/server".ljust(108, b"\0")
    if family == UNSPEC:
        return b""
    kind, here = (
        (socket.AF_INET, "198.51.100.9") if family >> 4 == 1 else (socket.AF_INET6, "2001:db8::9")
    )
    ends = socket.inet_pton(kind, source) + socket.inet_pton(kind, here)
    return ends + struct.pack("!HH", port, 6789)


def version_2(command: int, family: int, block: bytes, tlvs: Iterable[bytes] = ()) -> bytes:
    """A header out of its parts, fit or not."""
    rest = block + b"".join(tlvs)
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def header(source: str = "192.0.2.7", port: int = 4000, *tlvs: bytes) -> bytes:
    """What a proxy says of a client with this address."""
    family = TCP6 if ":" in source else TCP4
    return version_2(PROXY, family, addresses(family, source, port), tlvs)


LOOK = version_2(LOCAL, UNSPEC, b"")
"""What a proxy says when it only looks whether the server is there."""
