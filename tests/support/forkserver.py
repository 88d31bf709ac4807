"""The process that ``forking.Forked`` has its commands forked from; run as a program.

It has imported the three commands once, which is most of what a start costs. Rules:

* one thread, so that forking is safe, and the default action for every signal: it
  looks at its children through descriptors;
* a child returns from ``serve`` to the bottom of this file and goes on there, so that
  it ends as an interpreter does: streams flushed, threads joined, exit code and all;
* nothing of the server is left in a child: descriptors, streams, ``sys.path``, ``__main__``;
* it ends when its tests do, whose end of the socket is closed then, and the kernel kills
  its children with it.

A request is one packet: what to run, with the child's standard streams and a socket
for the answers. These are its number, with a descriptor of the process, and at its end
what ``waitpid`` told.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import struct
import sys
import types
from pathlib import Path
from typing import Any, Final, TypeAlias

ANSWER: Final = struct.Struct("=i")
"""The number of a process; then the status that it ended with."""
LARGEST: Final = 1 << 20
"""Bytes of a request: its arguments and environment."""
MODULES: Final = ("nbnet.cli", "nbclient.cli", "loadgen.cli")

Request: TypeAlias = dict[str, Any]
"""``words`` after the interpreter's, ``cwd``, ``environment``, ``session``."""


def prepare() -> None:
    """Load what commands load."""
    for name in MODULES:
        importlib.import_module(name)
    from loadgen.commands import load_of

    load_of([])  # parsing loads more
    # What is never looked at stays shared.
    gc.collect()
    gc.freeze()


def serve(tests: socket.socket) -> Request | None:
    """Fork on request until there are no more tests; in a child returns what it is to do."""
    poller = select.poll()
    poller.register(tests, select.POLLIN)
    answers: dict[int, tuple[int, socket.socket]] = {}
    with contextlib.closing(tests):
        while True:
            for ready, _ in poller.poll():
                if ready != tests.fileno():
                    poller.unregister(ready)
                    _bury(ready, *answers.pop(ready))
                    continue
                message, given, _, _ = socket.recv_fds(tests, LARGEST, 4)
                if not message:
                    return None
                server, pid = os.getpid(), os.fork()
                if not pid:
                    for each in (tests, *(answer for _, answer in answers.values())):
                        each.detach()
                    _settle(server, given[:3])
                    return json.loads(message)  # type: ignore[no-any-return]
                for descriptor in given[:3]:
                    os.close(descriptor)
                process, answer = os.pidfd_open(pid), socket.socket(fileno=given[3])
                answers[process] = pid, answer
                poller.register(process, select.POLLIN)
                _tell(answer, pid, [process])


def _bury(process: int, pid: int, answer: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    os.close(process)
    with answer:
        _tell(answer, status)


def _tell(answer: socket.socket, number: int, descriptors: list[int] | None = None) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is interested any more
        socket.send_fds(answer, [ANSWER.pack(number)], descriptors or [])


def _settle(server: int, streams: list[int]) -> None:
    """Have these standard streams and no other descriptor, and end with the server."""
    from nbnet.machine import die_with_parent

    die_with_parent(server)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(len(streams), os.sysconf("SC_OPEN_MAX"))
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old = getattr(sys, name)
        new: Any = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        new.buffer.raw.name = f"<{name}>"
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def become(request: Request) -> None:
    """Do what the interpreter does with such words."""
    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    how, what, *arguments = request["words"]
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd()) if how == "-m" else ""
    sys.argv = [how, *arguments]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    prepare()
    wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    if wanted is not None:
        become(wanted)
