"""The handler of the server that is soaked: backwards; it also tells what its process holds.

``SOAK_FAULTS`` in the environment breaks it on purpose, to see whether that is noticed:
``wrong`` (a reply to the request before), ``objects``, ``memory``, ``files`` (left behind),
each once in some requests.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
from collections import Counter, deque
from typing import Any, Final

PROBE: Final = b"\0soak: what do you hold?"
"""The request that is answered with what ``held`` gives, as JSON."""
EVERY: Final = 50
"""One in so many requests goes wrong, if any."""
LEFT: Final = 2000
"""Objects, or hundreds of bytes, that are left behind then."""
_faults = frozenset(filter(None, os.environ.get("SOAK_FAULTS", "").split(",")))
_left: list[object] = []
_requests: deque[bytes] = deque([b""], maxlen=2)
_count = itertools.count(1)


def handle(payload: bytes) -> bytes:
    """The payload backwards, or what this process holds."""
    if payload == PROBE:
        return json.dumps(held()).encode()
    return _faulty(payload) if _faults else payload[::-1]


def held() -> dict[str, Any]:
    """What this process has: objects that the collector knows, by kind, and blocks of memory.

    >>> sorted(held())
    ['blocks', 'kinds', 'objects', 'pid']
    """
    gc.collect()
    objects = gc.get_objects()
    kinds = Counter(type(each).__qualname__ for each in objects)
    return {
        "pid": os.getpid(),
        "objects": len(objects),
        "blocks": sys.getallocatedblocks(),
        "kinds": dict(kinds.most_common(40)),
    }


def _faulty(payload: bytes) -> bytes:
    _requests.append(payload)
    if next(_count) % EVERY == 0:
        if "objects" in _faults:
            _left.extend([payload] for _ in range(LEFT))
        if "memory" in _faults:
            _left.append(bytes(LEFT * 100))
        if "files" in _faults:
            _left.append(os.open(os.devnull, os.O_RDONLY))
        if "wrong" in _faults:
            return _requests[0][::-1]
    return payload[::-1]
