"""TLS and mutual TLS for an event loop, on the standard ``ssl``.

``TlsSocket`` stands where a plain, non-blocking socket does: ``BlockingIOError``
is "not yet", ``b""`` the end of input, any other ``OSError`` the end of the
connection. What is different under TLS:

* a call may wait for the other direction, since TLS has messages of its own to
  exchange. ``wants`` then says which event to wait for;
* a poller knows of what the kernel has, and nothing of what OpenSSL has read
  and decrypted already: a read that came back full must be followed by another.
  One that came back short has left nothing behind, and the next event will come;
* a refused ``send`` may have a record half on its way: the next one must begin
  with the same bytes. It may go on with more, and lie elsewhere in memory;
* ``shutdown`` of the write side tells the peer so inside of TLS as well. One
  that just vanishes, without ``close_notify``, has its input end like any
  other's: a cut-off message shows in the framing, which is what that
  notification protects in protocols that have none;
* nobody negotiates again on a connection: it would cost the server far more
  than the peer, and is gone from TLS 1.3.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from nbnet.pollers import READ, WRITE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NOISE: Final = re.compile(r"^\[.*?\] | \(_ssl\.c:\d+\)$")

RECORD_SIZE: Final = 16 * 1024
"""Bytes of payload that a TLS record holds at most."""

# A key of another kind than the certificate's is told by the last of them.
_MISMATCHES: Final = frozenset(
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
)


class TlsSocket(ssl.SSLSocket):
    """A connected socket that speaks TLS; made by ``wrap``, or ``wrap_client``.

    Attributes:
        wants: after ``BlockingIOError`` the event to wait for, if it is not the
            natural one: ``WRITE`` after ``recv``, ``READ`` after ``send``. After
            an unfinished handshake, the event in any case. 0 otherwise.
    """

    wants: int = 0
    is_made: bool = False

    def getpeername(self) -> Any:
        """The peer's address.

        Raises:
            OSError: the connection failed. A socket that is still being made is closed
                then: Python would lose it, or take it for one to be connected yet.
        """
        try:
            return super().getpeername()
        except OSError as error:
            if self.is_made:
                raise
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is done. If not, ``wants`` says for what it waits.

        Raises:
            OSError: it failed. OpenSSL has tried to tell the peer why.
        """
        try:
            self.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            self.wants = _event(error)
            return False
        except ssl.SSLError as error:
            raise _plain(error) from None
        self.wants = 0
        return True

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """At most ``buflen`` bytes, out of one record; ``b""`` at the end of input.

        After ``shutdown`` what comes is not decrypted any more: it is there to be
        thrown away. Python before 3.11.9 and 3.12.3 takes a reset for the end of
        input here; what is sent then fails.

        Raises:
            BlockingIOError: there is nothing yet; see ``wants``.
            OSError: the connection failed.
        """
        try:
            data = super().recv(buflen, flags)
        except ssl.SSLError as error:
            raise self._refusal(error, READ) from None
        self.wants = 0
        return data

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        """Send what the kernel takes of ``data``; how many bytes that was.

        Raises:
            BlockingIOError: it takes nothing now; see ``wants``.
            OSError: the connection failed.
        """
        sent = 0
        with memoryview(data) as view:
            # Record by record: given more, OpenSSL reports nothing before it has
            # sent all of it, and a slow peer looks like one that reads nothing.
            while sent < len(view):
                try:
                    # An error keeps the frames that it came through, and so the
                    # record: unless released, it would lock a caller's bytearray.
                    with view[sent : sent + RECORD_SIZE] as record:
                        sent += super().send(record, flags)
                except ssl.SSLError as error:
                    if sent and _event(error):
                        break
                    raise self._refusal(error, WRITE) from None
                self.wants = 0
        return sent

    def shutdown(self, how: int) -> None:
        """Send ``close_notify`` and shut down the write side, or both sides.

        The peer's own ``close_notify`` is not waited for, and a kernel that takes
        no more output is not either: the peer then sees the plain end of input.

        Raises:
            ValueError: only the read side is meant, of which TLS knows nothing.
            OSError: the connection failed before.
        """
        if how == socket.SHUT_RD:
            # Without its TLS half, which goes here, the socket would send clear text.
            raise ValueError("a TLS connection cannot shut down its read side alone")
        # Always fails but for a peer that has sent its own: it looks for that one, too.
        with contextlib.suppress(OSError, ValueError):
            self.unwrap()
        self.wants = 0
        super().shutdown(how)

    def peer_name(self) -> str | None:
        """See the function of this name."""
        return peer_name(self)

    def _refusal(self, error: ssl.SSLError, natural: int) -> OSError:
        """What a call should raise, which waits for the event ``natural`` as a rule."""
        event = _event(error)
        self.wants = 0 if event == natural else event
        return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) if event else _plain(error)


def wrap(context: ssl.SSLContext, plain: socket.socket) -> TlsSocket:
    """Take over an accepted socket for TLS; its handshake is still to come.

    Args:
        context: from ``server_context``, or through ``prepare``.
        plain: the socket, which is closed or detached by this.

    Raises:
        OSError: the peer is gone already.
    """
    try:
        plain.setblocking(False)
        # wrap_socket gives a socket without a peer the benefit of the doubt, in
        # ways that end in several errors, and in none.
        plain.getpeername()
        wrapped = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    except ssl.SSLError as error:
        raise _plain(error) from None
    finally:
        plain.close()
    return _made(wrapped)


def wrap_client(context: ssl.SSLContext, plain: socket.socket, server_name: str) -> TlsSocket:
    """Take over a connected, non-blocking socket as the client; its handshake is still to come.

    Args:
        context: from ``client_context``.
        plain: the socket, which is detached by this; the new one has its descriptor.
        server_name: the name that the server's certificate has to be of.

    Raises:
        OSError: the peer is gone already.
    """
    plain.getpeername()  # as in wrap
    try:
        wrapped = context.wrap_socket(
            plain, server_hostname=server_name, do_handshake_on_connect=False
        )
    except ssl.SSLError as error:
        raise _plain(error) from None
    return _made(wrapped)


def _made(wrapped: ssl.SSLSocket) -> TlsSocket:
    made = cast(TlsSocket, wrapped)
    made.is_made = True
    return made


def client_context(
    authority: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
) -> ssl.SSLContext:
    """A context for ``wrap_client``, from PEM files: TLS 1.2 and up, certificates are checked.

    Args:
        authority: who may sign the server's certificate; None is the system's.
        cert: the certificate to show to the server; None is none.
        key: its private key; None if it stands in ``cert``.

    Raises:
        ValueError: a file cannot be used; one line that names it and says why.

    >>> client_context("nowhere.pem")
    Traceback (most recent call last):
    ValueError: nowhere.pem: No such file or directory
    """
    if authority is not None:
        check_certificates(authority)
    context = ssl.create_default_context(cafile=authority)
    context.sslsocket_class = TlsSocket
    if cert is not None:
        load_chain(context, cert, cert if key is None else key)
    return context


def prepare(context: ssl.SSLContext) -> None:
    """Make a context fit for ``wrap``; versions, ciphers and certificates stay its owner's.

    Raises:
        ValueError: it is one for clients.

    >>> prepare(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    >>> prepare(ssl.create_default_context())
    Traceback (most recent call last):
    ValueError: the TLS context is one for clients, expected one for servers
    """
    # A context for either side may still ask for names, which only servers have.
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT or context.check_hostname:
        raise ValueError("the TLS context is one for clients, expected one for servers")
    context.sslsocket_class = TlsSocket
    context.options |= ssl.OP_NO_RENEGOTIATION


def server_context(
    cert: str | Path, key: str | Path | None, client_ca: str | Path | None = None
) -> ssl.SSLContext:
    """A context for ``wrap``, from PEM files: TLS 1.2 and up.

    Args:
        cert: the server's certificate, followed by those that lead to its authority.
        key: its private key; None if it stands in ``cert``.
        client_ca: authorities: clients must then show a certificate of one of them.

    Raises:
        ValueError: a file cannot be used; one line that names it and says why.

    >>> server_context("nowhere.pem", None)
    Traceback (most recent call last):
    ValueError: nowhere.pem: No such file or directory
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    # Tickets let a client come back with half a handshake. Connections here stay,
    # each worker has keys of its own, and without tickets each connection proves
    # its certificate. Those of TLS 1.2 remain: instead of them OpenSSL would keep
    # sessions in memory, 20,480 of them.
    context.num_tickets = 0
    prepare(context)
    load_chain(context, cert, cert if key is None else key)
    if client_ca is not None:
        check_certificates(client_ca)
        context.load_verify_locations(cafile=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_name(tls_socket: ssl.SSLSocket) -> str | None:
    """Who the peer's certificate says it is; None without one. After the handshake only.

    The first subject alternative name that is a DNS name, an email address or a
    URI; else the common name of the subject.
    """
    certificate = tls_socket.getpeercert() or {}
    # The stubs leave open what is in there, since it depends on the field.
    for kind, name in cast("tuple[tuple[str, str], ...]", certificate.get("subjectAltName", ())):
        if kind in ("DNS", "email", "URI"):
            return name
    parts = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
    for part in parts:
        for field, value in part:
            if field == "commonName":
                return value
    return None


def load_chain(context: ssl.SSLContext, cert: str | Path, key: str | Path) -> None:
    """Have a context show what is in these PEM files.

    Raises:
        ValueError: they cannot be used; one line that names the file and says why.
    """

    def encrypted() -> NoReturn:
        # Without this, OpenSSL asks for the passphrase on the terminal and waits.
        raise ValueError(f"{key}: the private key is encrypted, expected one that is not")

    check_certificates(cert)
    if "PRIVATE KEY-----" not in _read(key):
        raise ValueError(f"{key}: no private key in it")
    try:
        context.load_cert_chain(cert, key, password=encrypted)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise ValueError(f"{key}: the private key is not that of {cert}") from None
        if error.reason in (None, "PEM_LIB"):
            raise ValueError(f"{key}: the private key in it cannot be read") from None
        # The certificates can be read, but are not what OpenSSL's policy asks for.
        raise ValueError(f"{cert}: {_words(error)}") from None


def check_certificates(path: str | Path) -> None:
    """Find certificates in a PEM file, and parse them all.

    Raises:
        ValueError: there are none, or they cannot be read; one line that names the file.
    """
    text = _read(path)
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError(f"{path}: no certificate in it")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except ssl.SSLError:
        raise ValueError(f"{path}: a certificate in it cannot be read") from None


def _read(path: str | Path) -> str:
    """A PEM file as text; what is outside of ASCII there is comment."""
    try:
        return Path(path).read_text("ascii", "replace").replace("\N{REPLACEMENT CHARACTER}", "?")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def _event(error: ssl.SSLError) -> int:
    """The event that OpenSSL waits for; 0 if that is not what the error says."""
    if isinstance(error, ssl.SSLWantReadError):
        return READ
    return WRITE if isinstance(error, ssl.SSLWantWriteError) else 0


def _plain(error: ssl.SSLError) -> OSError:
    """The error without OpenSSL's file names and numbers."""
    if isinstance(error, ssl.SSLEOFError):
        return OSError(errno.ECONNRESET, "the TLS connection was cut off")
    return OSError(errno.EPROTO, _words(error))


def _words(error: ssl.SSLError) -> str:
    """OpenSSL's reason.

    >>> error = ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:992)")
    >>> error.reason = "HTTP_REQUEST"
    >>> _words(error)
    'http request'
    """
    if error.reason:
        words = error.reason.replace("_", " ").lower()
    else:
        words = _NOISE.sub("", str(error.args[-1]))
    if isinstance(error, ssl.SSLCertVerificationError):
        words += f": {error.verify_message}"
    return words
