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
    Kept("server", 93, "watching the wake-up failed (ENOMEM), which left the listeners open"),
    Kept("server", 118, "watching a listener failed (ENOMEM), which ended the server"),
    Kept("server", 8593, "a peer ended its stream when the server had reset it: the peer's fault"),
    Kept("load", 2, "watching a new connection failed (ENOMEM), which ended the engine"),
    Kept("load", 29, "the same, and then what was not registered was unregistered"),
)
