"""How people write durations, counts, sizes and addresses. One grammar for all commands.

Every parser takes text and raises ``ValueError`` with a line that names what
was given and what would do.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, NamedTuple

_SECONDS: Final = {
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
}
_MULTIPLES: Final = {"": 1, "k": 1_000, "M": 1_000_000}
_BYTES: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_LARGEST_COUNT: Final = 10**15
_PART: Final = re.compile(rf"({_NUMBER})(us|ms|s|m|h)")
_DURATION: Final = re.compile(rf"(?:{_NUMBER}|(?:{_NUMBER}(?:us|ms|s|m|h))+)")
_SIZE: Final = re.compile(r"([0-9]+)(|KiB|MiB|GiB)")
_COUNT: Final = re.compile(rf"({_NUMBER})([kM]?)")
_HOST: Final = re.compile(r"[!-~\u00a1-\U0010ffff]+")  # nothing invisible


def parse_duration(text: str) -> float:
    """Seconds in ``250us``, ``500ms``, ``30s``, ``1m30s``, ``1h``; a bare number is seconds.

    Raises:
        ValueError: the text is no duration.

    >>> parse_duration("1m30s"), parse_duration("250us"), parse_duration("2.5")
    (90.0, 0.00025, 2.5)
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration: expected one like 250us, 500ms, 30s or 1m30s")
    parts = _PART.findall(text)
    if not parts:
        return float(text)
    return float(sum(Decimal(number) * _SECONDS[unit] for number, unit in parts))


def format_duration(seconds: float) -> str:
    """Seconds as people say them, with three significant digits.

    >>> format_duration(0.0001234), format_duration(0.05), format_duration(30)
    ('123 us', '50.0 ms', '30.0 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        value = seconds / size
        if value >= 0.9995:  # rounds to 1.00 of this unit, not to 1000 of the next
            decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{decimals}f} {unit}"
    return "0 s"


def parse_count(text: str) -> int:
    """The whole number in ``5000``, ``5k``, ``1.5M``.

    Raises:
        ValueError: the text is no whole number.

    >>> parse_count("5k"), parse_count("1.5M")
    (5000, 1500000)
    """
    match = _COUNT.fullmatch(text)
    count = Decimal(match[1]) * _MULTIPLES[match[2]] if match else None
    if count is None or count > _LARGEST_COUNT or count != int(count):
        raise ValueError(f"{text!r} is no count: expected one like 5000, 5k or 1.5M")
    return int(count)


def parse_size(text: str) -> int:
    """Bytes in ``64``, ``4KiB``, ``256MiB``, ``1GiB``.

    Raises:
        ValueError: the text is no size.

    >>> parse_size("64"), parse_size("4KiB")
    (64, 4096)
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no size: expected one like 64, 4KiB or 256MiB")
    return int(match[1]) * _BYTES[match[2]]


class Target(NamedTuple):
    """Where a server listens: a host (name or address) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        """The notation that ``parse_target`` reads."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """The address in ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
        ValueError: the text is no such address.

    >>> parse_target("localhost:6789")
    Target(host='localhost', port=6789)
    >>> str(parse_target("[::1]:6789"))
    '[::1]:6789'
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not (
        colon
        and _HOST.fullmatch(host)
        and re.fullmatch("[0-9]{1,5}", port)
        and 0 < int(port) < 65536
    ):
        raise ValueError(f"{text!r} is no target: expected HOST:PORT or [IPv6]:PORT")
    return Target(host, int(port))


def parse_place(text: str) -> Target:
    """Where to serve: ``HOST:PORT``; port 0 lets the kernel choose one.

    Raises:
        ValueError: the text is no such place.

    >>> parse_place("127.0.0.1:0")
    Target(host='127.0.0.1', port=0)
    """
    host, _, port = text.rpartition(":")
    chosen = port != "0"  # which the notation of a target to connect to does not know
    try:
        target = parse_target(text if chosen else f"{host}:1")
    except ValueError:
        raise ValueError(
            f"{text!r} is no place to serve: expected HOST:PORT or [IPv6]:PORT"
        ) from None
    return target if chosen else target._replace(port=0)


class Address(NamedTuple):
    """Where a client finds a server: TCP or a unix socket, plain or with TLS.

    ``host`` and ``port`` are of no meaning where there is a ``path``.
    """

    host: str
    port: int
    path: str = ""
    tls: bool = False

    @property
    def target(self) -> Target:
        """Host and port; of a unix socket, nothing to use."""
        return Target(self.host, self.port)

    def __str__(self) -> str:
        """The notation that ``parse_address`` reads."""
        if self.path:
            return f"unix:{self.path}"
        return f"tls://{self.target}" if self.tls else str(self.target)


def parse_address(text: str) -> Address:
    """The address in ``HOST:PORT``, ``[IPv6]:PORT``, ``tls://HOST:PORT`` or ``unix:PATH``.

    Raises:
        ValueError: the text is no such address.

    >>> parse_address("tls://localhost:6789")
    Address(host='localhost', port=6789, path='', tls=True)
    >>> str(parse_address("unix:/run/nbnet.sock"))
    'unix:/run/nbnet.sock'
    """
    scheme, colon, path = text.partition(":")
    if colon and scheme == "unix":
        if not path or "\0" in path:
            raise ValueError(f"{text!r} is no target: expected unix:PATH")
        return Address("", 0, path=path)
    plain = text.removeprefix("tls://")
    try:
        return Address(*parse_target(plain), tls=plain != text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no target: expected HOST:PORT, [IPv6]:PORT, tls://HOST:PORT or unix:PATH"
        ) from None
