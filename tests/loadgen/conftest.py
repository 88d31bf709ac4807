"""Targets and terminals for the tests of the load generator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import termios
from collections.abc import Callable, Iterator

import pytest

from nbnet.notation import Address

from .servers import Behaviour, Service, serving


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Service]]:
    """Starts servers that behave as told and count what they do."""
    with contextlib.ExitStack() as stack:
        yield lambda behave: stack.enter_context(serving(behave))


@pytest.fixture
def hostile(serve: Callable[[Behaviour], Service]) -> Callable[[Behaviour], Address]:
    """Starts servers that behave as told; gives where they are."""
    return lambda behave: serve(behave).address


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal of 80 columns: the end that a person sees, and that of programs."""
    person, program = pty.openpty()
    fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        yield person, program
    finally:
        os.close(person)
        os.close(program)
