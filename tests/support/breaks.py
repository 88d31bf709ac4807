"""Bugs put in on purpose: a check that has teeth finds them.

Each takes what pytest calls ``monkeypatch``, so that it ends with the test. Here are
those that several kinds of tests have to find; others stand beside their test.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from nbclient import Client, RequestTimeout
from nbclient.exchange import Exchange, Request


def kept_after_a_timeout(patch: pytest.MonkeyPatch) -> None:
    """A connection whose reply was given up on is used again, out of step."""
    discard = Client._discard

    def keep(self: Client, connection: Any) -> None:
        if isinstance(sys.exception(), RequestTimeout):
            connection.idle.append(connection)
        else:
            discard(self, connection)

    patch.setattr(Client, "_discard", keep)


def forgotten_when_abandoned(patch: pytest.MonkeyPatch) -> None:
    """A request that was given up on is not waited for, so that the next gets its reply."""
    abandon = Exchange.abandon

    def forget(self: Exchange, request: Request) -> None:
        abandon(self, request)
        if request in self._due:
            self._due.remove(request)
            self.load -= 1
            self.outstanding -= 1

    patch.setattr(Exchange, "abandon", forget)
