"""What the machine allows, where nothing else asks for it."""

from __future__ import annotations

import socket

import pytest

from nbnet.cli import _workers
from nbnet.machine import look_up, usable_cores
from nbnet.notation import Target


def test_what_is_no_name_of_a_host_is_unknown() -> None:
    with pytest.raises(socket.gaierror, match="Name or service not known"):
        look_up(Target("\u00fc" * 64, 80))


def test_as_many_workers_as_there_are_cores() -> None:
    assert _workers("auto") == usable_cores()
