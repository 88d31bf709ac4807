"""The options of ``nbnet serve`` that a reload reads again, from the command line and a file.

A file is TOML with the options' names as keys, without the dashes before them::

    handler = "shop.orders:handle"
    threads = 8
    max-frame = "4KiB"
    idle-timeout = "5m"
    proxy-protocol = ["10.0.0.0/8", "fd00::/8"]

What stands on the command line wins, so that it can be tried there.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from nbnet.limits import Limits
from nbnet.notation import parse_count, parse_duration, parse_size
from nbnet.proxy import parse_networks
from nbnet.settings import Certificate, Settings

DEFAULT_HANDLER: Final = "nbnet.handlers:reverse"


def _parse_flag(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "True"


_LIMITS: Final[dict[str, Callable[[str], Any]]] = {
    "max_connections": parse_count,
    "refuse": _parse_flag,
    "max_per_ip": parse_count,
    "max_frame": parse_size,
    "frames_per_turn": parse_count,
    "high_water": parse_size,
    "low_water": parse_size,
    "max_output": parse_size,
    "handshake_timeout": parse_duration,
    "first_byte_timeout": parse_duration,
    "frame_timeout": parse_duration,
    "idle_timeout": parse_duration,
    "write_timeout": parse_duration,
    "linger": parse_duration,
    "drain": parse_duration,
}
_OTHERS: Final[dict[str, Callable[[str], Any]]] = {
    "handler": str,
    "threads": parse_count,
    "tls_cert": str,
    "tls_key": str,
    "tls_client_ca": str,
    "proxy_protocol": parse_networks,
}
_PARSERS: Final = _LIMITS | _OTHERS


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What the options say; nothing that they name has been looked at.

    Attributes:
        handler: a function's name, ``module:function``.
        limits: the bounds to keep.
        threads: how many run the handler.
        tls: the files for TLS; None for plain connections.
        proxy_protocol: networks of proxies.
    """

    handler: str
    limits: Limits
    threads: int
    tls: Certificate | None
    proxy_protocol: tuple[str, ...]

    def load(self, poller: str, trigger: str) -> Settings:
        """The settings, with the handler imported and the certificates loaded.

        Raises:
            ValueError: something makes no sense or cannot be loaded.
        """
        return Settings.read(
            self.handler,
            self.limits,
            poller=poller,
            trigger=trigger,
            threads=self.threads,
            tls=self.tls,
            proxy_protocol=self.proxy_protocol,
        )


def read_options(told: Mapping[str, str | None], file: Path | None = None) -> Options:
    """Put together what was told and what stands in a file.

    Args:
        told: texts by option, with underscores; None for what was not told.
        file: a TOML file.

    Raises:
        ValueError: something makes no sense, or the file cannot be read; the
            text names the option, and the file if it stands there.

    >>> read_options({"max_frame": "4KiB"}).limits.max_frame
    4096
    >>> read_options({"idle_timeout": "soon"})
    Traceback (most recent call last):
    ValueError: --idle-timeout: 'soon' is no duration: expected one like 250us, 500ms, 30s or 1m30s
    """
    values = {} if file is None else _read_file(file)
    for name, text in told.items():
        if text is not None:
            values[name] = _parse(f"--{_written(name)}", name, text)
    if "tls_cert" not in values and {"tls_key", "tls_client_ca"} & set(values):
        raise ValueError("TLS needs a certificate: --tls-cert")
    tls = None
    if "tls_cert" in values:
        tls = Certificate(values["tls_cert"], values.get("tls_key"), values.get("tls_client_ca"))
    return Options(
        handler=values.get("handler", DEFAULT_HANDLER),
        limits=_limits({name: value for name, value in values.items() if name in _LIMITS}),
        threads=values.get("threads", 0),
        tls=tls,
        proxy_protocol=values.get("proxy_protocol", ()),
    )


def _limits(values: dict[str, Any]) -> Limits:
    try:
        return Limits(**values)
    except ValueError as error:
        said = str(error)
        for name in _LIMITS:
            said = said.replace(name, _written(name))
        raise ValueError(said) from error


def _read_file(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or no text
        raise ValueError(f"{file}: {error}") from error
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in _PARSERS or "_" in key:
            known = ", ".join(map(_written, _PARSERS))
            raise ValueError(f"{file}: {key!r} is none of what a file may say: {known}")
        several = name == "proxy_protocol" and isinstance(value, list)
        text = ",".join(map(str, value)) if several else str(value)
        values[name] = _parse(f"{file}: {key}", name, text)
    return values


def _parse(where: str, name: str, text: str) -> Any:
    try:
        return _PARSERS[name](text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _written(name: str) -> str:
    return name.replace("_", "-")
