"""loadgen: a load generator for length-prefixed messages over TCP that verifies every reply."""

from nbnet import __version__

__all__ = ["__version__"]
