"""Seeds that once showed something, kept for good, each with what it was.

A seed is a run only as long as the worlds draw in the same order; what was found
has a test of its own as well, where it can be told apart.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Kept(NamedTuple):
    """A seed, and why it is kept."""

    world: str
    seed: int
    reason: str


KEPT: Final = (
    Kept("server", 136, "watching the listener again failed (ENOSPC), which ended the server"),
    Kept("server", 101, "the same left the other connections open"),
    Kept("server", 20, "watching the wake-up failed, which left the listeners open"),
    Kept("server", 172, "a deadline that the stop made shorter is due in the next turn"),
    Kept("server", 2363, "a peer that was reset while it waited to be accepted"),
    Kept("load", 2, "watching a new connection failed (ENOMEM), which ended the engine"),
    Kept("load", 58, "the same when it was made, which left it half registered"),
    Kept("load", 130, "watching the control failed (ENOSPC): nothing may be left then either"),
)
