"""What a client was told when it was made, validated; and the errors that name its peer.

Both fronts take the same and word their errors here, so that they say the same.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Self, TypeAlias, cast

from nbclient.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    PoolTimeout,
    RequestTimeout,
    Stage,
)
from nbclient.events import Hook, Observer
from nbclient.servers import Attempts
from nbnet.notation import Address, Target, parse_address

if TYPE_CHECKING:
    import ssl

DEFAULT_TARGET: Final = "127.0.0.1:6789"
DEFAULT_TIMEOUT: Final = 5.0
"""Seconds."""
DEFAULT_WINDOW: Final = 4096
"""Requests of ``request_many`` that may be unanswered at a time."""

# The kernel counts the milliseconds of a wait in 31 bits, 24 days. Nobody sees
# the difference between no limit and one of weeks.
_LONGEST_TIMEOUT: Final = 1e6


class Default(Enum):
    """In place of a value: the one that the client was made with."""

    CLIENTS = "the client's"


OneTarget: TypeAlias = str | tuple[str, int]
Targets: TypeAlias = OneTarget | Sequence[OneTarget]
"""A server: ``"HOST:PORT"``, ``"[IPv6]:PORT"``, ``"tls://HOST:PORT"``, ``"unix:PATH"``
or a host and a port; or several of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What both fronts take, validated. Times in seconds, infinite for no limit.

    Attributes:
        addresses: where the servers listen.
        timeout: for one request.
        connect_timeout: for one attempt to connect.
        max_connections: as each front counts them.
        retries: how often a request is tried again at most.
        backoff, backoff_cap: the longest pause before the first retry, and of all.
        context: what agrees on TLS; None without.
        server_name: the name that the server's certificate must have, if not the host.
        observer: who is told what happens.
    """

    addresses: tuple[Address, ...]
    timeout: float
    connect_timeout: float
    max_connections: int
    retries: int
    backoff: float
    backoff_cap: float
    context: ssl.SSLContext | None
    server_name: str | None
    observer: Observer

    @classmethod
    def read(
        cls,
        target: Targets,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        connect_timeout: float | None = None,
        max_connections: int = 1,
        retries: int = 0,
        backoff: float = 0.05,
        backoff_cap: float = 2.0,
        tls: bool | ssl.SSLContext | None = None,
        tls_ca: str | os.PathLike[str] | None = None,
        tls_cert: str | os.PathLike[str] | None = None,
        tls_key: str | os.PathLike[str] | None = None,
        tls_server_name: str | None = None,
        on_event: Hook | None = None,
    ) -> Self:
        """Settings from what a caller gave.

        Raises:
            ValueError: a target is no address, a number is out of its range, or
                a file for TLS cannot be read.

        >>> settings = Settings.read(["localhost:6789", "unix:/run/nbnet.sock"], timeout=0.5)
        >>> [str(address) for address in settings.addresses]
        ['localhost:6789', 'unix:/run/nbnet.sock']
        """
        addresses = tuple(dict.fromkeys(map(_read_target, _as_sequence(target))))
        if not addresses:
            raise ValueError("a client needs at least one target")
        if connect_timeout is None and timeout is not None and len(addresses) > 1:
            connect_timeout = timeout / len(addresses)  # so that the others have a chance
        if max_connections < 1:
            raise ValueError(f"max_connections of {max_connections} leaves no connection")
        if retries < 0:
            raise ValueError(f"retries of {retries} are below 0")
        if not (backoff >= 0 and backoff_cap >= 0):
            raise ValueError(f"a pause of {min(backoff, backoff_cap)} s is below 0")
        secure = any(address.tls for address in addresses)
        named = tls_ca or tls_cert or tls_key or tls_server_name
        if tls is False and (secure or named):
            raise ValueError("tls=False contradicts a target with tls:// and what is given for TLS")
        context = None
        if tls or secure or named:
            context = _make_context(tls, tls_ca, tls_cert, tls_key)
            addresses = tuple(
                address._replace(tls=True) if tls is not None or named else address
                for address in addresses
            )
        if context and not tls_server_name and any(a.tls and a.path for a in addresses):
            raise ValueError("TLS through a unix socket needs tls_server_name")
        return cls(
            addresses=addresses,
            timeout=read_timeout("timeout", timeout),
            connect_timeout=read_timeout("connect_timeout", connect_timeout),
            max_connections=max_connections,
            retries=retries,
            backoff=backoff,
            backoff_cap=backoff_cap,
            context=context,
            server_name=tls_server_name,
            observer=Observer(on_event),
        )

    def limit(self, timeout: float | Default | None) -> float:
        """The seconds that one request may take.

        Raises:
            ValueError: they are not positive.
        """
        if timeout is Default.CLIENTS:
            return self.timeout
        return read_timeout("timeout", timeout)

    def attempts(self, deadline: float, *, idempotent: bool) -> Attempts:
        """The attempts of one request."""
        return Attempts(
            self.retries, self.backoff, self.backoff_cap, idempotent=idempotent, deadline=deadline
        )

    def tls_name(self, address: Address) -> str:
        """The name that the certificate of a server must have."""
        return self.server_name or address.host

    def check_tls_name(self, address: Address) -> None:
        """Notice before a connection is made that no certificate can have its name.

        ``ssl`` and trio notice it too late, and leave the socket open.

        Raises:
            OSError: it is no name of a host.
        """
        import ssl

        assert self.context is not None
        name = self.tls_name(address)
        try:
            self.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
        except ValueError as error:
            raise OSError(f"{name!r} is in no certificate: {error}") from error

    @property
    def names(self) -> str:
        """The servers, for a message."""
        return ", ".join(map(str, self.addresses))

    # Errors --------------------------------------------------------------------

    def cannot_connect(self, reasons: Mapping[str, str]) -> ConnectError:
        """The error when no server could be reached, with the reason for each."""
        if len(reasons) == 1:
            ((name, reason),) = reasons.items()
            text = f"cannot connect to {name}: {reason}"
        else:
            every = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            text = f"cannot connect to any server: {every}"
        return ConnectError(text, peer=", ".join(reasons), reasons=dict(reasons))

    def timed_out(self, seconds: float, peer: str, *, maybe_executed: bool) -> RequestTimeout:
        """The error for a deadline that has passed."""
        stage: Stage = "receiving" if maybe_executed else "sending"
        return RequestTimeout(
            f"no reply from {peer} within {_written(seconds)}",
            peer=peer,
            stage=stage,
            maybe_executed=maybe_executed,
        )

    def connect_timed_out(self, seconds: float, peer: str) -> ConnectTimeout:
        """The error for a deadline that has passed while connecting."""
        text = f"no connection to {peer} within {_written(seconds)}"
        return ConnectTimeout(text, peer=peer, stage="connecting")

    def pool_timed_out(self, seconds: float) -> PoolTimeout:
        """The error for a deadline that has passed while all connections were in use."""
        text = (
            f"all {self.max_connections} connections to {self.names} in use for {_written(seconds)}"
        )
        return PoolTimeout(text, peer=self.names, stage="waiting for a connection")

    def closed(self, peer: str = "", *, maybe_executed: bool = False) -> ClosedError:
        """The error for use after closing."""
        text = f"the client for {self.names} is closed"
        return ClosedError(text, peer=peer, maybe_executed=maybe_executed)


def lost(peer: str, cause: BaseException, *, maybe_executed: bool) -> ConnectionLost:
    """The error for a connection that broke, to be raised from its cause."""
    return ConnectionLost(
        f"lost the connection to {peer}: {reason_of(cause)}",
        peer=peer,
        stage="receiving" if maybe_executed else "sending",
        maybe_executed=maybe_executed,
    )


def read_timeout(name: str, seconds: float | None) -> float:
    """Seconds, infinite for None and for what nobody waits for.

    Raises:
        ValueError: it is not positive.

    >>> read_timeout("timeout", 0.5), read_timeout("timeout", None)
    (0.5, inf)
    """
    if seconds is None or seconds > _LONGEST_TIMEOUT:
        return math.inf
    if not seconds > 0:  # nor is it NaN, which compares as false
        raise ValueError(f"a {name} of {seconds} is not above 0 seconds")
    return seconds


def reason_of(error: BaseException) -> str:
    """What the operating system said, without number and decoration.

    >>> reason_of(ConnectionRefusedError(111, "connect call failed"))
    'Connection refused'
    """
    if isinstance(error, OSError):
        # trio puts words of its own into strerror; a failed look-up of a name
        # has a strerror, but its number is none of errno. Nor are those of TLS.
        number = error.errno
        if type(error).__module__ != "ssl" and number is not None and number in errno.errorcode:
            return os.strerror(number)
        verified = getattr(error, "verify_message", "")
        if verified:
            return f"the certificate does not verify: {verified}"
        reason = getattr(error, "reason", None)  # OpenSSL's: WRONG_VERSION_NUMBER
        if reason:
            return f"TLS: {reason.replace('_', ' ').lower()}"
        if error.strerror:
            return error.strerror
    return str(error) or type(error).__name__


def reasons_of(error: BaseException) -> str:
    """The same for an attempt that may have failed at several addresses."""
    group = error.__cause__
    if isinstance(group, ExceptionGroup):
        return ", ".join(dict.fromkeys(map(reason_of, group.exceptions)))
    return reason_of(error)


def _written(seconds: float) -> str:
    """A timeout as people give it: ``0.5 s``, ``5 ms``, ``30 s``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.1 * size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds / 1e-6:g} us"


def _as_sequence(target: Targets) -> Sequence[OneTarget]:
    if isinstance(target, str):
        return [target]
    given: object = target
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise TypeError(f"a target is text, or a host and a port, not {type(given).__name__}")
    if len(target) == 2 and isinstance(target[1], int):
        return [cast("tuple[str, int]", target)]
    return cast("Sequence[OneTarget]", target)


def _read_target(target: OneTarget) -> Address:
    # Written out and read again, a pair is checked by the same rules.
    return parse_address(target if isinstance(target, str) else str(Target(*target)))


def _make_context(
    tls: bool | ssl.SSLContext | None,
    ca: str | os.PathLike[str] | None,
    cert: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
) -> ssl.SSLContext:
    import ssl  # takes its time, and most do without

    if isinstance(tls, ssl.SSLContext):
        if ca or cert or key:
            raise ValueError("an SSLContext has its certificates already: no paths besides")
        return tls
    if key and not cert:
        raise ValueError("tls_key needs tls_cert")

    from nbnet.tls import check_certificates, load_chain

    if ca:
        check_certificates(os.fspath(ca))
    context = ssl.create_default_context(cafile=ca)  # TLS 1.2 and up
    if cert:
        load_chain(context, os.fspath(cert), os.fspath(key or cert))
    return context
