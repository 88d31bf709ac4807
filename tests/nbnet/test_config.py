"""Options from the command line and a file, put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbnet.config import DEFAULT_HANDLER, read_options
from nbnet.limits import Limits
from nbnet.settings import Certificate


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nbnet.toml"


def test_nothing_told_is_the_defaults() -> None:
    options = read_options({"handler": None, "max_frame": None})
    assert (options.handler, options.limits, options.threads, options.tls) == (
        DEFAULT_HANDLER,
        Limits(),
        0,
        None,
    )


def test_every_limit_can_stand_in_the_file(file: Path) -> None:
    limits = Limits(
        **{
            name: True if name == "refuse" else 7  # type: ignore[arg-type]
            for name in Limits.__dataclass_fields__
        }
    )
    file.write_text(
        "".join(
            f"{name.replace('_', '-')} = {str(getattr(limits, name)).lower()}\n"
            for name in Limits.__dataclass_fields__
        )
    )
    assert read_options({}, file).limits == limits


def test_the_command_line_wins(file: Path) -> None:
    file.write_text('handler = "a:b"\nthreads = 3\nmax-frame = "4KiB"\ntls-cert = "c.pem"\n')
    options = read_options({"handler": "c:d", "tls_key": "k.pem", "threads": None}, file)
    assert options.handler == "c:d"
    assert options.threads == 3
    assert options.limits.max_frame == 4096
    assert options.tls == Certificate("c.pem", "k.pem")


@pytest.mark.parametrize("value", ["['::1', '10.0.0.0/8']", "'::1, 10.0.0.0/8'"])
def test_proxies_are_a_list_either_way(file: Path, value: str) -> None:
    file.write_text(f"proxy-protocol = {value}")
    assert read_options({}, file).proxy_protocol == ("::1", "10.0.0.0/8")
    assert read_options({"proxy_protocol": "unix"}, file).proxy_protocol == ("unix",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-frame", "Expected '='"),
        ("max_frame = 3", "'max_frame' is none of what a file may say: max-connections, refuse,"),
        ("host = 'x'", "'host' is none of what a file may say"),
        ("idle-timeout = 'soon'", "idle-timeout: 'soon' is no duration"),
        ("refuse = 'yes'", "refuse: 'yes' is neither true nor false"),
        ("threads = [1]", r"threads: '\[1\]' is no count"),
        ("max-frame = 0", "max-frame is 0"),
        ("low-water = 2\nhigh-water = 1", "low-water 2 and high-water 1: expected 0 <= low-water"),
        ("tls-client-ca = 'ca.pem'", "TLS needs a certificate: --tls-cert"),
        ("proxy-protocol = '10.0.0.1/8'", "proxy-protocol: '10.0.0.1/8' is no network"),
        ("proxy-protocol = [7]", "proxy-protocol: '7' is no network"),
    ],
)
def test_a_file_that_makes_no_sense(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_options({}, file)


def test_a_file_that_is_no_text_or_not_there(file: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*nbnet\.toml: No such file"):
        read_options({}, file)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"nbnet\.toml: "):
        read_options({}, file)
