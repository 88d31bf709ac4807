"""What the options of a load come to (``loadgen.asked``); most of it: ``test_cli``."""

from __future__ import annotations

import pytest

from loadgen.asked import tls_of
from nbnet.command import CommandError
from nbnet.notation import Address


def test_the_files_of_tls_are_looked_at_by_those_who_use_them() -> None:
    target = Address("h", 1, tls=True)
    plan = tls_of(target, "/nowhere", None, None, None, here=False)
    assert plan is not None
    assert (plan.server_name, plan.authority) == ("h", "/nowhere")
    with pytest.raises(CommandError, match="/nowhere: No such file"):
        tls_of(target, "/nowhere", None, None, None, here=True)
