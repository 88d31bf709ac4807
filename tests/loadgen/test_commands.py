"""What the commands have in common (``loadgen.commands``)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadgen.commands import check_connected
from loadgen.report import Run
from loadgen.tally import Counts
from loadgen.verdict import EXIT_NO_CONNECTION
from nbnet.command import CommandError
from nbnet.notation import parse_address

from .runs import fine, finished, on_hosts, snapshots


def refused(*, embedded: bool = False) -> Run:
    """A run in which nobody took a connection."""
    counts = Counts(failed_to_connect=2)
    counts.errors["connect: refused"] = 2
    return finished(snapshots(counts), embedded=embedded)


@pytest.mark.parametrize(
    ("run", "advice"),
    [
        (refused(), "start a server with: nbnet serve; without --target loadgen brings its own"),
        (refused(embedded=True), "the bundled server does not serve any more"),
        (
            replace(refused(), hosts=on_hosts().hosts),
            "start a server that all hosts reach with: nbnet serve --host 0.0.0.0",
        ),
    ],
)
def test_who_cannot_connect_is_told_what_would_help(run: Run, advice: str) -> None:
    with pytest.raises(CommandError) as caught:
        check_connected(run)
    assert caught.value.message == f"cannot connect to 127.0.0.1:6789: refused ({advice})"
    assert caught.value.code == EXIT_NO_CONNECTION


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("reset", "does the server speak TLS?"),
        (
            "certificate verify failed: self-signed certificate",
            "--tls-ca: whom to trust; --tls-server-name: the name in the certificate",
        ),
        ("refused", "start a server with: nbnet serve; without --target loadgen brings its own"),
    ],
)
def test_with_tls_other_things_may_be_wrong(kind: str, advice: str) -> None:
    counts = Counts(failed_to_connect=1)
    counts.errors[f"connect: {kind}"] = 1
    run = replace(
        finished(snapshots(counts), embedded=False), target=parse_address("tls://localhost:6789")
    )
    with pytest.raises(CommandError) as caught:
        check_connected(run)
    assert caught.value.message == f"cannot connect to tls://localhost:6789: {kind} ({advice})"


def test_a_connection_is_enough_to_go_on() -> None:
    check_connected(fine())
