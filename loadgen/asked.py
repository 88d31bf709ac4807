"""What the options of a load come to, where it takes several of them, or a file.

Every value that makes no sense is refused in a line that names the option.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from loadgen.plan import ClusterPlan, TlsPlan
from loadgen.traffic import Traffic, parse_sizes, read_payloads
from nbnet.command import EXIT_USAGE, CommandError, optional, parsed
from nbnet.notation import Address, parse_count, parse_duration

UNBOUNDED: Final = 24 * 3600.0
"""Seconds that a run with --requests and no --duration may take."""


def duration_of(
    text: str | None, stages: tuple[tuple[float, float], ...], requests: int | None
) -> float:
    """Seconds: as asked, else what the stages take; a number of requests alone is no time.

    >>> duration_of(None, ((10.0, 500.0), (5.0, 0.0)), None)
    15.0
    """
    if text is not None:
        return parsed("--duration", parse_duration, text)
    if stages:
        return sum(seconds for seconds, _ in stages)
    return 10.0 if requests is None else UNBOUNDED


def parse_workers(text: str) -> int:
    """A number of processes.

    Raises:
        ValueError: it is none, or 0.

    >>> parse_workers("2")
    2
    """
    try:
        count = parse_count(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{text!r} is no number of workers: expected 1, 2 ... or auto")
    return count


def traffic_of(
    text: str | None, size: str | None, file: str | None, unique: bool, expect: str
) -> Traffic:
    """What is sent, and what has to come back.

    Raises:
        CommandError: a file cannot be read, a size is none, or two sources are named.

    >>> traffic_of("abc", None, None, False, "echo").payload
    b'abc'
    """
    given = [
        option
        for option, value in (
            ("--payload", text),
            ("--payload-size", size),
            ("--payload-file", file),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise CommandError(f"{given[0]} and {given[1]}: give one of them", EXIT_USAGE)
    return Traffic(
        payload=os.fsencode(text) if text is not None else b"abc",
        sizes=optional("--payload-size", parse_sizes, size),
        payloads=() if file is None else _read_payloads(file),
        unique=unique,
        expect=expect,
    )


def _read_payloads(file: str) -> tuple[bytes, ...]:
    path = file.removeprefix("frames:")
    try:
        return read_payloads(Path(path).read_bytes(), frames=path != file)
    except OSError as error:
        raise CommandError(f"--payload-file: {path}: {error.strerror}", EXIT_USAGE) from error
    except ValueError as error:
        raise CommandError(f"--payload-file: {path}: {error}", EXIT_USAGE) from error


def tls_of(
    target: Address | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    server_name: str | None,
    *,
    here: bool,
) -> TlsPlan | None:
    """How to speak TLS to the target; None where the target does not.

    Args:
        here: whether its files are of this machine, and can be looked at.

    Raises:
        CommandError: a file cannot be used, or an option has nothing to be for.
    """
    if target is None or not target.tls:
        if ca or cert or key or server_name:
            raise CommandError("--tls-...: needs a target tls://HOST:PORT", EXIT_USAGE)
        return None
    if key and not cert:
        raise CommandError("--tls-key: needs --tls-cert", EXIT_USAGE)
    if here:
        from nbnet.tls import client_context  # takes its time, and most do without

        try:
            client_context(ca, cert, key)
        except ValueError as error:
            raise CommandError(str(error), EXIT_USAGE) from error
    return TlsPlan(server_name=server_name or target.host, authority=ca, certificate=cert, key=key)


def cluster_of(
    target: Address | None,
    scheduler: str | None,
    *,
    hosts: int | None,
    patience: float,
    keep_going: bool,
    files: tuple[str | None, str | None, str | None],
) -> ClusterPlan | None:
    """Which hosts carry the load out; None for this machine.

    Args:
        patience: seconds.
        files: of TLS: authority, certificate, key.

    Raises:
        CommandError: the options do not fit each other, or the target.
    """
    if scheduler is None:
        if hosts is not None or keep_going or any(files):
            raise CommandError("--cluster-...: needs --cluster tcp://HOST:PORT", EXIT_USAGE)
        return None
    if target is None:
        raise CommandError(
            "--cluster: needs --target, a server that all hosts reach "
            "(start one with: nbnet serve --host 0.0.0.0)",
            EXIT_USAGE,
        )
    if target.path:
        raise CommandError(
            f"--target {target}: a unix socket is of one machine, not of a --cluster", EXIT_USAGE
        )
    if hosts == 0:
        raise CommandError("--cluster-hosts 0: at least 1 is needed", EXIT_USAGE)
    if not patience > 0:
        raise CommandError("--cluster-timeout: more than 0 is needed", EXIT_USAGE)
    authority, certificate, key = files
    if any(files) and not scheduler.startswith("tls://"):
        raise CommandError(
            "--cluster-ca, --cluster-cert, --cluster-key: need --cluster tls://HOST:PORT",
            EXIT_USAGE,
        )
    return ClusterPlan(
        scheduler=scheduler,
        authority=authority,
        certificate=certificate,
        key=key,
        hosts=hosts,
        patience=patience,
        keep_going=keep_going,
    )
