"""The targets, by name: functions of any bytes that raise if something is not as it has to be."""

from __future__ import annotations

import ast
import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fuzz.asking import client
from fuzz.decoding import decoder
from fuzz.loading import load
from fuzz.serving import server

TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "decoder": decoder,
    "server": server,
    "client": client,
    "load": load,
}
CORPUS: Final = Path(__file__).parent / "corpus"


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for a target, and those on which any has failed once."""
    return kept(name) + kept("found")


def kept(name: str) -> list[bytes]:
    """The inputs in a file: one a line, as Python writes bytes; ``#`` begins a comment."""
    lines = (CORPUS / f"{name}.txt").read_text().splitlines()
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What servers log of their peers' faults is not written."""
    log = logging.getLogger("nbnet")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
