"""The PROXY protocol: what a load balancer says of the client that it speaks for. No I/O.

A proxy that forwards bytes hides who sends them: to the server every client has
the proxy's address. So it begins each connection with a header that says who
the client is, before anything else, TLS included::

    v2 = signature version_command family length addresses *TLV     ; binary
    v1 = "PROXY " ("TCP4" / "TCP6") " " 4(address or port) CR LF    ; text
       / "PROXY UNKNOWN" *any CR LF

Specification: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt

The rules, which it asks for:

* a header is believed only if it comes from an address that is trusted
  (``Trusted``), and from such an address it is required: what can be left out
  can be forged;
* no byte is taken beyond the header (``needs``): what follows may be TLS;
* LOCAL (a health check, as a rule), UNKNOWN and UNSPEC say nothing of a client:
  the connection counts as the proxy's own;
* what cannot become a header is an error at once, and so is an address block
  that is too short, a TLV that is cut off, a checksum that is wrong. Other TLVs
  are passed over.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from nbnet.acceptor import UNIX_PEER
from nbnet.notation import Target

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
"""What a header of version 2 begins with: no text protocol would."""

_FIXED: Final = struct.Struct("!12sBBH")  # signature, version and command, family, length
_FIRST: Final = b"PROXY "  # of version 1
_LONGEST_LINE: Final = 107
"""Bytes of the longest header of version 1, its CR LF included."""
_SHORTEST_LINE: Final = len(b"PROXY UNKNOWN\r\n")

_UNSPEC: Final = 0x00
_ADDRESSES: Final = {
    _UNSPEC: 0,
    0x11: 12,  # TCP over IPv4
    0x12: 12,  # UDP
    0x21: 36,  # the same over IPv6
    0x22: 36,
    0x31: 216,  # unix stream
    0x32: 216,  # unix datagram
}
"""Bytes that the addresses take, by family and protocol: all that there are."""
_CHECKSUM: Final = 0x03
"""The kind of TLV that holds the CRC32C of the whole header."""


class ProxyError(ValueError):
    """What came is no PROXY header; the text says why."""


class Header(NamedTuple):
    """What a header says.

    Attributes:
        peer: the client, as ``accept`` would have named it; None if nothing is
            said of one: then it is the proxy itself.
        local: whether the proxy speaks for itself, for instance to see whether
            the server is there.
    """

    peer: Target | str | None
    local: bool = False


class HeaderDecoder:
    """Reads one header, however it is cut.

    Attributes:
        held: what has come of it so far.

    >>> decoder = HeaderDecoder()
    >>> decoder.feed(b"PROXY TCP4 19")
    >>> decoder.needs
    2
    >>> for byte in b"2.0.2.1 192.0.2.9 4000 6789\\r\\n":
    ...     header = decoder.feed(bytes([byte]))
    >>> header
    Header(peer=Target(host='192.0.2.1', port=4000), local=False)
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = bytearray()

    @property
    def needs(self) -> int:
        """How many bytes may be read at least without reading beyond the header."""
        held = self.held
        size = len(held)
        if held[:1] != SIGNATURE[:1] and size:
            if size < _SHORTEST_LINE:
                return _SHORTEST_LINE - size
            return 1 if held.endswith(b"\r") else 2
        if size < _FIXED.size:
            # Either version goes on so long.
            return (_FIXED.size if size else _SHORTEST_LINE) - size
        return _FIXED.size + int(_FIXED.unpack_from(held)[3]) - size

    def feed(self, data: bytes) -> Header | None:
        """Take the next bytes, no more than it ``needs``; the header once it is whole.

        Raises:
            ProxyError: this is none, and never becomes one.
            ValueError: there are more bytes than that.
        """
        if len(data) > self.needs:
            raise ValueError(f"{len(data)} bytes are more than the {self.needs} needed")
        held = self.held
        held += data
        if held.startswith(_FIRST):
            return self._end_line()
        if not (SIGNATURE.startswith(held[: len(SIGNATURE)]) or _FIRST.startswith(held)):
            raise ProxyError("no PROXY header where one is required")
        if len(held) < _FIXED.size:
            return None
        _, version_command, family, length = _FIXED.unpack_from(held)
        version, command = divmod(version_command, 16)
        if version != 2:
            raise ProxyError(f"version {version} of the header, expected 1 or 2")
        if command > 1:
            raise ProxyError(f"command {command}, expected LOCAL (0) or PROXY (1)")
        if command == 0:
            # Whatever else it says is to be passed over.
            return Header(None, local=True) if len(held) == _FIXED.size + length else None
        if family not in _ADDRESSES:
            raise ProxyError(f"address family and protocol 0x{family:02x} are not known")
        if length < _ADDRESSES[family]:
            raise ProxyError(f"{length} bytes of addresses, expected at least {_ADDRESSES[family]}")
        if len(held) < _FIXED.size + length:
            return None
        if family != _UNSPEC:  # else nobody knows where its addresses end
            _check_tlvs(bytes(held), _FIXED.size + _ADDRESSES[family])
        return Header(_client(family, held[_FIXED.size :]))

    def _end_line(self) -> Header | None:
        """What a line of version 1 says, if it is whole."""
        held = self.held
        end = held.find(b"\n", 0, _LONGEST_LINE)
        if end < 0:
            if len(held) >= _LONGEST_LINE:
                raise ProxyError(f"no end of line in {_LONGEST_LINE} bytes")
            return None
        if held[end - 1 : end] != b"\r":
            raise ProxyError("a line of version 1 does not end in CR LF")
        # More than the line is there only if it is too short to be one.
        _, family, *rest = bytes(held[: end - 1]).split(b" ")
        if family == b"UNKNOWN":
            return Header(None)
        if family not in (b"TCP4", b"TCP6") or len(rest) != 4:
            raise ProxyError("a line of version 1 that names no two addresses")
        source, _ = (_address(family, text) for text in rest[:2])
        port, _ = (_port(text) for text in rest[2:])
        return Header(Target(_host(source), port))


class Trusted:
    """Networks whose addresses may speak for others.

    Args:
        networks: CIDRs or single addresses; "unix" is those who come through a
            unix socket.

    Raises:
        ValueError: one of them is none of these.

    >>> trusted = Trusted(["10.0.0.0/8", "::1"])
    >>> trusted(Target("10.1.2.3", 4000)), trusted(Target("192.0.2.1", 4000))
    (True, False)
    """

    def __init__(self, networks: Iterable[str]) -> None:
        names = tuple(networks)
        self._unix = "unix" in names
        self._networks = tuple(_network(name) for name in names if name != "unix")

    def __bool__(self) -> bool:
        """Whether anybody is."""
        return self._unix or bool(self._networks)

    def __call__(self, peer: Target | str) -> bool:
        """Whether a peer is, as ``accept`` names it."""
        if not isinstance(peer, Target):
            return self._unix
        address = ipaddress.ip_address(peer.host)
        return any(address in network for network in self._networks)


def parse_networks(text: str) -> tuple[str, ...]:
    """The networks in a list like ``10.0.0.0/8,::1``, checked.

    Raises:
        ValueError: one of them is none.

    >>> parse_networks("10.0.0.0/8, unix")
    ('10.0.0.0/8', 'unix')
    >>> parse_networks("10.0.0.1/8")
    Traceback (most recent call last):
    ValueError: '10.0.0.1/8' is no network: expected 10.0.0.0/8, or 10.0.0.1 for one address
    """
    names = tuple(name.strip() for name in text.split(","))
    Trusted(names)
    return names


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(name)
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_interface(name)
    except ValueError:
        wanted = "one like 10.0.0.0/8, 192.0.2.1, fd00::/8 or unix"
    else:
        wanted = f"{meant.network}, or {meant.ip} for one address"
    raise ValueError(f"{name!r} is no network: expected {wanted}")


def _client(family: int, addresses: bytearray) -> Target | str | None:
    """Who the client is, out of an address block of version 2."""
    if family == _UNSPEC:
        return None
    if family >= 0x30:
        return UNIX_PEER
    size = 4 if family < 0x20 else 16
    [port] = struct.unpack_from("!H", addresses, 2 * size)
    return Target(_host(ipaddress.ip_address(bytes(addresses[:size]))), port)


def _host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    # An IPv4 client is to be the same one however the proxy has it written.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _address(family: bytes, text: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    kind = ipaddress.IPv4Address if family == b"TCP4" else ipaddress.IPv6Address
    try:
        # A zone would be one of the proxy's machine.
        return kind(text.replace(b"%", b"no zone").decode("ascii"))
    except ValueError:
        raise ProxyError("a line of version 1 with an address that is none") from None


def _port(text: bytes) -> int:
    if text.isdigit() and len(text) <= 5 and (text[:1] != b"0" or text == b"0"):
        port = int(text)
        if port < 65536:
            return port
    raise ProxyError("a line of version 1 with a port that is none")


def _check_tlvs(header: bytes, start: int) -> None:
    """See whether what follows on the addresses is whole, and the checksum right."""
    checksum_at = None
    while start < len(header):
        if start + 3 > len(header):
            raise ProxyError("a TLV that is cut off")
        kind, length = struct.unpack_from("!BH", header, start)
        value = start + 3
        start = value + length
        if start > len(header):
            raise ProxyError("a TLV that is cut off")
        if kind == _CHECKSUM:
            if length != 4 or checksum_at is not None:
                raise ProxyError("a checksum that is none, or a second one")
            checksum_at = value
    if checksum_at is not None:
        end = checksum_at + 4
        # It is taken of the header with nought in its own place.
        if crc32c(header[:checksum_at] + bytes(4) + header[end:]) != int.from_bytes(
            header[checksum_at:end], "big"
        ):
            raise ProxyError("the checksum is wrong")


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        crc = index
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The CRC32C (Castagnoli) of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
