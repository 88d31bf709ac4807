"""Something done in a forked child, for tests of what processes share."""

from __future__ import annotations

import os
from collections.abc import Callable

from nbnet.machine import die_with_parent


def in_child(action: Callable[[], object]) -> int:
    """Fork, do something there; the process to be waited for. An exception is exit code 1.

    It ends when these tests do, also when they are killed.
    """
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            die_with_parent(parent)
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
