"""The standard streams of a command: their reader may be gone, their disk full, or they closed.

The rules:

* what is told on standard error is lost if it cannot be written, and changes
  nothing: neither what a command does nor how it ends;
* what belongs on standard output and cannot be written there is an error, told
  in one line, of a command that would otherwise have ended well;
* nothing is left in a buffer that fails again when the interpreter ends, which
  would take the exit code away.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TextIO, cast


class _Lossy(io.FileIO):
    """A descriptor to which everything can be written; what it does not take is lost."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # of buffers, bytes
        """Write some of it, waiting for room; nothing happens if it cannot be written."""
        try:
            while (written := cast("int | None", super().write(data))) is None:
                # Whoever shares the terminal or pipe has made it so that it does not wait.
                ready = select.poll()
                ready.register(self, select.POLLOUT)
                ready.poll()
        except OSError:
            return len(data)
        return written


def lossy(stream: TextIO) -> TextIO:
    """A stream to the same descriptor, on which writing never fails.

    >>> import tempfile
    >>> with tempfile.TemporaryFile("w+") as file:
    ...     print("abc", file=lossy(file))
    ...     file.seek(0), file.read()
    (0, 'abc\\n')
    """
    raw: io.RawIOBase = _Lossy(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
    )


def guard_stderr() -> None:
    """Have nothing fail because standard error is closed or cannot be written."""
    stderr: TextIO | None = sys.stderr
    replaced = stderr is not sys.__stderr__  # somebody has put another one in its place
    if stderr is None:
        # What is said there is not to end up in the next file that is opened.
        descriptor = os.open(os.devnull, os.O_WRONLY)
        if descriptor != 2:
            os.dup2(descriptor, 2)
        os.set_inheritable(2, True)  # children are to find one, too
        sys.stderr = os.fdopen(2, "w")
    elif not replaced:
        sys.stderr = lossy(stderr)


def flush(stream: TextIO | None) -> OSError | None:
    """Write what a stream holds; if it cannot be written, drop it and give why.

    A stream is None where whoever started the process has closed it.
    """
    if stream is None or stream.closed:
        return None
    try:
        stream.flush()
    except OSError as error:
        _drop(stream)
        return error
    return None


def _drop(stream: TextIO) -> None:
    """Have what a stream holds go nowhere; the stream is as before afterwards."""
    # It has no descriptor, or there are too many: what it holds is tried again, then.
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        descriptor = stream.fileno()
        kept = os.dup(descriptor)
        stack.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, descriptor)
        stream.flush()
        os.dup2(kept, descriptor)
