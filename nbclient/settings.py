"""What a client was told when it was made, and the errors that name it.

Both fronts word their errors here, so that they say the same.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from nbclient.errors import ClosedError, ConnectError, ConnectionLost, RequestTimeout
from nbnet.notation import Target, parse_target

DEFAULT_TARGET: Final = "127.0.0.1:6789"
DEFAULT_TIMEOUT: Final = 5.0
"""Seconds."""

# The kernel counts the milliseconds of a wait in 31 bits, 24 days. Nobody sees
# the difference between no limit and one of weeks.
_LONGEST_TIMEOUT: Final = 1e6


@dataclass(frozen=True, slots=True)
class Settings:
    """What both fronts take, validated.

    Attributes:
        address: where the server listens.
        timeout: seconds for one request; None for no limit.
    """

    address: Target
    timeout: float | None

    @classmethod
    def read(cls, target: str | tuple[str, int], timeout: float | None) -> Self:
        """Settings from what a caller gave.

        Raises:
            ValueError: the target is no address, or the timeout is not positive.

        >>> Settings.read("localhost:6789", 0.5)
        Settings(address=Target(host='localhost', port=6789), timeout=0.5)
        """
        # Written out and read again, a pair is checked by the same rules.
        address = parse_target(target if isinstance(target, str) else str(Target(*target)))
        if timeout is None or timeout > _LONGEST_TIMEOUT:
            return cls(address, None)
        if not timeout > 0:  # nor is it NaN, which compares as false
            raise ValueError(f"a timeout of {timeout} is not above 0 seconds")
        return cls(address, timeout)

    @property
    def limit(self) -> float:
        """The timeout as a number: seconds, infinite for no limit."""
        return math.inf if self.timeout is None else self.timeout

    def cannot_connect(self, causes: Sequence[BaseException]) -> ConnectError:
        """The error for attempts to connect that failed, one cause for each."""
        # A name may stand for several addresses that fail alike.
        reasons = dict.fromkeys(map(_reason, causes))
        return ConnectError(f"cannot connect to {self.address}: {', '.join(reasons)}")

    def timed_out(self) -> RequestTimeout:
        """The error for a deadline that has passed."""
        return RequestTimeout(f"no reply from {self.address} within {self.limit:g} s")

    def lost(self, cause: BaseException) -> ConnectionLost:
        """The error for a connection that broke."""
        return ConnectionLost(f"lost the connection to {self.address}: {_reason(cause)}")

    def closed(self) -> ClosedError:
        """The error for use after closing."""
        return ClosedError(f"the client for {self.address} is closed")


def _reason(error: BaseException) -> str:
    """What the operating system said, without number and decoration."""
    if isinstance(error, OSError):
        # trio puts words of its own into strerror; a failed look-up of a name
        # has a strerror, but its number is none of errno.
        if error.errno is not None and error.errno in errno.errorcode:
            return os.strerror(error.errno)
        if error.strerror:
            return error.strerror
    return str(error) or type(error).__name__
