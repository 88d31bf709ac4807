"""What a client may be told, what it refuses, and how its errors are worded."""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from nbclient.errors import (
    ClosedError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    PoolTimeout,
    RequestTimeout,
)
from nbclient.events import Event
from nbclient.settings import (
    DEFAULT_TIMEOUT,
    Default,
    Settings,
    Targets,
    _written,
    lost,
    read_timeout,
    reason_of,
    reasons_of,
)
from nbnet.notation import Address, Target

# Targets -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "addresses"),
    [
        ("127.0.0.1:6789", [Address("127.0.0.1", 6789)]),
        ("[::1]:1", [Address("::1", 1)]),
        ("tls://a.example:1", [Address("a.example", 1, tls=True)]),
        ("unix:/run/x.sock", [Address("", 0, path="/run/x.sock")]),
        (("::1", 1), [Address("::1", 1)]),
        (Target("a.example", 65535), [Address("a.example", 65535)]),
        (["a:1", ("b", 2), "unix:c"], [Address("a", 1), Address("b", 2), Address("", 0, "c")]),
        (("a:1", "b:2"), [Address("a", 1), Address("b", 2)]),
        ((("a", 1), Target("b", 2)), [Address("a", 1), Address("b", 2)]),
        (["a:1", "b:2", ("a", 1)], [Address("a", 1), Address("b", 2)]),  # each one once
    ],
)
def test_a_target_is_text_or_a_pair_or_several_of_these(
    target: Targets, addresses: list[Address]
) -> None:
    assert Settings.read(target).addresses == tuple(addresses)


@pytest.mark.parametrize(
    "target",
    ["", "localhost", "localhost:0", "unix:", ("", 1), ("localhost", 0), ("localhost", 65536)],
)
@pytest.mark.parametrize("several", [False, True])
def test_what_is_no_target_is_refused(target: str | tuple[str, int], *, several: bool) -> None:
    with pytest.raises(ValueError, match="is no target"):
        Settings.read(["a:1", target] if several else target)


def test_no_target_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one target"):
        Settings.read([])


# Numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [(None, math.inf), (math.inf, math.inf), (1e9, math.inf), (1, 1), (1e6, 1e6)],
)
def test_a_timeout_is_seconds_or_no_limit(seconds: float | None, limit: float) -> None:
    settings = Settings.read("h:1", timeout=seconds, connect_timeout=seconds)
    assert settings.timeout == settings.connect_timeout == limit
    assert settings.limit(seconds) == read_timeout("timeout", seconds) == limit


@pytest.mark.parametrize("seconds", [0, -1, math.nan, -math.inf])
def test_what_is_no_timeout_is_refused(seconds: float) -> None:
    settings = Settings.read("h:1")
    calls: list[tuple[str, Callable[[], object]]] = [
        ("timeout", lambda: Settings.read("h:1", timeout=seconds)),
        ("connect_timeout", lambda: Settings.read("h:1", connect_timeout=seconds)),
        ("timeout", lambda: settings.limit(seconds)),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=f"a {name} of .* is not above 0 seconds"):
            call()


def test_a_request_has_the_limit_of_the_client_or_its_own() -> None:
    settings = Settings.read("h:1", timeout=3)
    assert settings.limit(Default.CLIENTS) == 3
    assert settings.limit(None) == math.inf
    assert settings.limit(0.5) == 0.5
    assert Settings.read("h:1").limit(Default.CLIENTS) == DEFAULT_TIMEOUT
    assert Settings.read("h:1").connect_timeout == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_connections": 0}, "max_connections of 0 leaves no connection"),
        ({"retries": -1}, "retries of -1 are below 0"),
        ({"backoff": -0.5}, "a pause of -0.5 s is below 0"),
        ({"backoff_cap": -1.0}, "a pause of -1.0 s is below 0"),
        ({"backoff": math.nan}, "a pause of nan s is below 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.read("h:1", **arguments)


def test_the_least_that_may_be_asked() -> None:
    settings = Settings.read("h:1", max_connections=1, retries=0, backoff=0, backoff_cap=0)
    assert settings.attempts(5.0, idempotent=True).pause(ConnectionLost("lost"), 0.0) is None


def test_attempts_are_as_the_client_was_told() -> None:
    settings = Settings.read("h:1", retries=2, backoff=0.0, backoff_cap=0.0)
    unsure = ConnectionLost("lost", maybe_executed=True)
    attempts = settings.attempts(5.0, idempotent=True)
    assert [attempts.pause(unsure, 4.0) for _ in range(3)] == [0.0, 0.0, None]
    assert settings.attempts(5.0, idempotent=True).pause(unsure, 5.0) is None
    assert settings.attempts(5.0, idempotent=False).pause(unsure, 0.0) is None


def test_the_hook_is_called() -> None:
    events: list[Event] = []
    settings = Settings.read("h:1", on_event=events.append)
    settings.observer(Event("connect", "h:1"))
    assert settings.observer.active
    assert len(events) == 1
    assert not Settings.read("h:1").observer.active


# TLS ---------------------------------------------------------------------------


class Files:
    """What somebody has on disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        authority = trustme.CA()
        leaf = authority.issue_cert("a.example")
        self.ca = self.write("ca.pem", authority.cert_pem.bytes())
        self.cert = self.write("cert.pem", b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        self.key = self.write("key.pem", leaf.private_key_pem.bytes())
        self.both = self.write("both.pem", leaf.private_key_and_cert_chain_pem.bytes())
        self.other_key = self.write(
            "other.pem", authority.issue_cert("b.example").private_key_pem.bytes()
        )
        secret = load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"passphrase")
        )
        self.secret = self.write("secret.pem", secret)
        self.junk = self.write("junk.pem", b"junk")
        self.missing = directory / "missing.pem"

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


def test_without_a_word_of_it_there_is_no_tls() -> None:
    for tls in (None, False):
        settings = Settings.read("a:1", tls=tls)
        assert settings.context is None
        assert not settings.addresses[0].tls


def test_whatever_speaks_of_tls_asks_for_it(files: Files) -> None:
    for settings in (
        Settings.read("a:1", tls=True),
        Settings.read("tls://a:1"),
        Settings.read("a:1", tls_ca=files.ca),
        Settings.read("a:1", tls_ca=str(files.ca)),
        Settings.read("a:1", tls_cert=files.cert, tls_key=files.key),
        Settings.read("a:1", tls_cert=files.both),
        Settings.read("a:1", tls_server_name="b"),
    ):
        assert isinstance(settings.context, ssl.SSLContext)
        assert settings.context.check_hostname
        assert settings.context.verify_mode is ssl.CERT_REQUIRED
        assert settings.context.minimum_version >= ssl.TLSVersion.TLSv1_2
        assert [str(address) for address in settings.addresses] == ["tls://a:1"]


def test_some_of_several_targets_may_be_plain_unless_tls_is_asked_for(files: Files) -> None:
    targets = ["tls://a:1", "b:2"]
    settings = Settings.read(targets)
    assert [address.tls for address in settings.addresses] == [True, False]
    for asked in (Settings.read(targets, tls=True), Settings.read(targets, tls_ca=files.ca)):
        assert [address.tls for address in asked.addresses] == [True, True]


def test_of_several_servers_each_may_take_its_share_of_the_timeout_to_connect() -> None:
    assert Settings.read(["a:1", "b:2"], timeout=5.0).connect_timeout == 2.5
    assert Settings.read(["a:1", "b:2"], timeout=5.0, connect_timeout=4.0).connect_timeout == 4.0
    assert Settings.read("a:1", timeout=5.0).connect_timeout == math.inf


@pytest.mark.parametrize("target", [6789, b"a:1", None])
def test_what_is_neither_text_nor_a_pair_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="a target is text, or a host and a port, not"):
        Settings.read(target)


def test_a_context_is_taken_as_it_is() -> None:
    context = ssl.create_default_context()
    settings = Settings.read("a:1", tls=context)
    assert settings.context is context
    assert settings.addresses[0].tls


def test_the_name_in_the_certificate_is_the_host_or_what_was_given() -> None:
    settings = Settings.read(["tls://a:1", "tls://[::1]:2"])
    assert [settings.tls_name(address) for address in settings.addresses] == ["a", "::1"]
    settings = Settings.read(["tls://a:1", "unix:/run/x"], tls=True, tls_server_name="c")
    assert [settings.tls_name(address) for address in settings.addresses] == ["c", "c"]


def test_the_files_are_used(files: Files) -> None:
    settings = Settings.read("a:1", tls_ca=files.ca)
    assert settings.context is not None
    assert len(settings.context.get_ca_certs()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "tls://a:1", "tls": False}, "tls=False contradicts"),
        ({"tls": False, "tls_ca": "ca"}, "tls=False contradicts"),
        ({"tls": False, "tls_server_name": "b"}, "tls=False contradicts"),
        ({"tls_key": "key"}, "tls_key needs tls_cert"),
        ({"tls_ca": "ca", "tls_key": "key"}, "tls_key needs tls_cert"),
        ({"target": "unix:/run/x", "tls": True}, "needs tls_server_name"),
        ({"tls_ca": "missing"}, "missing.pem: No such file"),
        ({"tls_ca": "junk"}, "junk.pem: no certificate in it"),
        ({"tls_cert": "missing"}, "missing.pem: No such file"),
        ({"tls_cert": "cert"}, "cert.pem: no private key in it"),
        (
            {"tls_cert": "cert", "tls_key": "other_key"},
            "other.pem: the private key is not that of ",
        ),
        ({"tls_cert": "cert", "tls_key": "secret"}, "secret.pem: the private key is encrypted"),
    ],
)
def test_what_makes_no_sense_for_tls_is_refused(
    files: Files, arguments: dict[str, Any], message: str
) -> None:
    arguments = {"target": "a:1"} | {
        name: getattr(files, value) if name in ("tls_ca", "tls_cert", "tls_key") else value
        for name, value in arguments.items()
    }
    with pytest.raises(ValueError, match=message):
        Settings.read(**arguments)


@pytest.mark.parametrize("name", ["tls_ca", "tls_cert", "tls_key"])
def test_a_context_and_files_are_too_much(files: Files, name: str) -> None:
    more: dict[str, Any] = {name: files.both}
    with pytest.raises(ValueError, match="no paths besides"):
        Settings.read("a:1", tls=ssl.create_default_context(), **more)


# Errors ------------------------------------------------------------------------


def test_an_error_for_one_server_names_it() -> None:
    settings = Settings.read(["a:1", "b:2"])
    error = settings.cannot_connect({"a:1": "Connection refused"})
    assert isinstance(error, ConnectError)
    assert str(error) == "cannot connect to a:1: Connection refused"
    assert (error.peer, error.stage, error.maybe_executed) == ("a:1", "connecting", False)
    assert error.reasons == {"a:1": "Connection refused"}


def test_an_error_for_all_servers_names_each_with_its_reason() -> None:
    reasons = {"a:1": "Connection refused", "b:2": "No route to host"}
    error = Settings.read(["a:1", "b:2"]).cannot_connect(reasons)
    assert str(error) == (
        "cannot connect to any server: a:1: Connection refused; b:2: No route to host"
    )
    assert error.peer == "a:1, b:2"
    assert error.reasons == reasons
    assert error.reasons is not reasons


@pytest.mark.parametrize(("maybe_executed", "stage"), [(False, "sending"), (True, "receiving")])
def test_a_timeout_and_a_loss_say_how_far_it_went(stage: str, *, maybe_executed: bool) -> None:
    settings = Settings.read("[::1]:1")
    late = settings.timed_out(0.5, "[::1]:1", maybe_executed=maybe_executed)
    gone = lost("[::1]:1", EOFError(), maybe_executed=maybe_executed)
    assert type(late) is RequestTimeout
    assert type(gone) is ConnectionLost
    assert str(late) == "no reply from [::1]:1 within 0.5 s"
    assert str(gone) == "lost the connection to [::1]:1: EOFError"
    for error in (late, gone):
        assert (error.peer, error.stage) == ("[::1]:1", stage)
        assert error.maybe_executed == maybe_executed


def test_the_other_errors_say_what_they_are_at() -> None:
    settings = Settings.read(["a:1", "b:2"], max_connections=7)
    late = settings.connect_timed_out(2.0, "a:1")
    assert type(late) is ConnectTimeout
    assert str(late) == "no connection to a:1 within 2 s"
    assert (late.peer, late.stage, late.maybe_executed) == ("a:1", "connecting", False)
    full = settings.pool_timed_out(0.25)
    assert type(full) is PoolTimeout
    assert str(full) == "all 7 connections to a:1, b:2 in use for 0.25 s"
    assert (full.peer, full.stage) == ("a:1, b:2", "waiting for a connection")
    closed = settings.closed("a:1", maybe_executed=True)
    assert type(closed) is ClosedError
    assert str(closed) == "the client for a:1, b:2 is closed"
    assert (closed.peer, closed.maybe_executed) == ("a:1", True)
    assert (settings.closed().peer, settings.closed().maybe_executed) == ("", False)


def openssl(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "decorated")
    error.reason = reason
    return error


def unverified() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "decorated")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "words of another"), "Connection refused"),
        (TimeoutError(errno.ETIMEDOUT, "x"), os.strerror(errno.ETIMEDOUT)),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not kn"),
        (ssl.SSLError(1, "[SSL: X] wrong version number"), "[SSL: X] wrong version number"),
        (openssl("WRONG_VERSION_NUMBER"), "TLS: wrong version number"),
        (unverified(), "the certificate does not verify: self-signed certificate"),
        (OSError("no route"), "no route"),
        (OSError(), "OSError"),
        (TimeoutError(), "TimeoutError"),
        (EOFError("the end"), "the end"),
        (EOFError(), "EOFError"),
    ],
)
def test_a_reason_is_what_the_operating_system_says(error: BaseException, reason: str) -> None:
    assert reason_of(error).startswith(reason)


def test_several_reasons_are_told_once_each() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "")
    error = OSError("all failed")
    assert reasons_of(error) == "all failed"
    error.__cause__ = refused
    assert reasons_of(error) == "all failed"
    error.__cause__ = ExceptionGroup("all", [refused, OSError("no route"), refused])
    assert reasons_of(error) == "Connection refused, no route"


def test_a_timeout_is_told_as_people_write_it() -> None:
    assert [_written(seconds) for seconds in (30.0, 0.5, 0.005, 5e-6)] == [
        "30 s",
        "0.5 s",
        "5 ms",
        "5 us",
    ]
