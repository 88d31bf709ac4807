from __future__ import annotations

import errno
import math

import pytest

from nbclient.settings import Settings
from nbnet.notation import Target


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("127.0.0.1:6789", Target("127.0.0.1", 6789)),
        ("[::1]:1", Target("::1", 1)),
        (("::1", 1), Target("::1", 1)),
        (Target("a.example", 65535), Target("a.example", 65535)),
    ],
)
def test_a_target_is_text_or_a_pair(target: str | tuple[str, int], address: Target) -> None:
    assert Settings.read(target, None).address == address


@pytest.mark.parametrize(
    "target", ["", "localhost", "localhost:0", ("", 1), ("localhost", 0), ("localhost", 65536)]
)
def test_what_is_no_target_is_refused(target: str | tuple[str, int]) -> None:
    with pytest.raises(ValueError, match="is no target"):
        Settings.read(target, None)


@pytest.mark.parametrize(
    ("timeout", "limit"), [(None, math.inf), (math.inf, math.inf), (1e9, math.inf), (1, 1)]
)
def test_a_timeout_is_seconds_or_no_limit(timeout: float | None, limit: float) -> None:
    assert Settings.read("h:1", timeout).limit == limit


@pytest.mark.parametrize("timeout", [0, -1, math.nan, -math.inf])
def test_what_is_no_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="not above 0 seconds"):
        Settings.read("h:1", timeout)


def test_errors_name_the_address_and_each_reason_once() -> None:
    settings = Settings.read("[::1]:1", 0.5)
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    error = settings.cannot_connect([refused, OSError("no route"), refused])
    assert str(error) == "cannot connect to [::1]:1: Connection refused, no route"
    assert str(settings.timed_out()) == "no reply from [::1]:1 within 0.5 s"
    assert str(settings.lost(EOFError())) == "lost the connection to [::1]:1: EOFError"
    assert str(settings.closed()) == "the client for [::1]:1 is closed"
