"""The way to the hosts of a cluster: what a run asks of it, and what it hears.

``loadgen.dask_link`` goes over Dask; tests have hosts in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from loadgen.clocks import Sample

T = TypeVar("T")
Calls: TypeAlias = Mapping[str, tuple[Any, ...]]
"""The arguments of a call, by address of the worker that is called."""


class Host(NamedTuple):
    """A host of the cluster.

    Attributes:
        address: of the host.
        worker: the address of the Dask worker there that was chosen.
        declares: whether that worker has the resource ``loadgen``.
    """

    address: str
    worker: str
    declares: bool = False


class Heard(Enum):
    """What can be heard of a host, with the value that comes along."""

    BODY = auto()  # the number of a message, and the message
    BEAT = auto()
    ENDED = auto()  # the exit code of its process, which is gone with all its children
    GONE = auto()  # why, in words: the agent is gone
    SILENT = auto()  # for how many seconds nothing was heard
    AGAIN = auto()  # it is heard again
    TIME = auto()  # a Sample of its clock
    ANSWER = auto()  # the arguments of a call that was posted, and what came of it


class Event(NamedTuple):
    """Something heard of a host, which is named by its worker."""

    worker: str
    kind: Heard
    value: Any = None


class Link(Protocol):
    """The way to the hosts; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def hosts(self) -> list[Host]:
        """The hosts that there are."""

    def call(
        self, function: Callable[..., T], arguments: Calls, seconds: float
    ) -> dict[str, T | Exception]:
        """Call a function on some workers, and wait so long for what they return."""

    def time(self, addresses: list[str], seconds: float) -> dict[str, Sample | Exception]:
        """Ask workers for the time."""

    def place(self, host: Host) -> None:
        """Start the agent on a host."""

    def post(
        self, function: Callable[..., object], calls: Calls, seconds: float | None = None
    ) -> None:
        """Call without waiting; may be called from a signal handler.

        Args:
            seconds: the time after which what came of each is heard, at the latest;
                None if it does not matter.
        """

    def next(self, seconds: float) -> Event | None:
        """What is heard next; None if nothing is in so many seconds."""
