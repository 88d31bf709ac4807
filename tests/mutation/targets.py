"""Which modules are mutated, and which tests have to find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Target:
    """A module, and the tests that are played.

    Attributes:
        module: the path of its source.
        tests: files of tests, its own first.
        tables: whether it is data, whose entries are changed one by one.
    """

    module: str
    tests: tuple[str, ...]
    tables: bool = False


_CONNECTION: Final = (
    "tests/nbnet/test_states.py",
    "tests/nbnet/test_connection.py",
    "tests/nbnet/test_threads.py",
)

TARGETS: Final = {
    "framing": Target("nbnet/framing.py", ("tests/nbnet/test_framing.py",)),
    "states": Target("nbnet/states.py", (*_CONNECTION, "tests/nbnet/test_loop.py"), tables=True),
    "connection": Target("nbnet/connection.py", _CONNECTION),
    "exchange": Target("nbclient/exchange.py", ("tests/nbclient/test_exchange.py",)),
    "pipeline": Target(
        "nbclient/pipeline.py",
        ("tests/nbclient/test_pipeline.py", "tests/nbclient/test_exchange.py"),
    ),
}
