"""How ``nbnet serve`` logs: what a line looks like, how many there are, who writes them.

The rules:

* a line is one record: whatever could end or disguise one in a message or an
  exception's text is escaped (CWE-117), and what is very long is cut;
* no payloads. Nobody here can tell a payload from a message: whoever logs
  keeps to it;
* what repeats is said so often and then counted;
* logging never blocks and never raises: a thread writes, and when nobody reads
  what it writes, records are dropped and counted;
* the line is made where the record is: a record that waits holds no traceback,
  and with it no frames, no sockets and no payloads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Final, TextIO

BURST: Final = 10
"""Records of one kind that are let through ..."""
PERIOD: Final = 10.0
"""... in this many seconds."""
KINDS: Final = 256
"""Kinds of records remembered: of a message for each place in the code, all."""
BACKLOG: Final = 1000
"""Lines that may wait to be written."""
FLUSH_TIMEOUT: Final = 1.0
"""Seconds that writing them may take when logging ends."""
LONGEST_MESSAGE: Final = 2_000
"""Characters of a message: with the rest of the line they nearly always fit in
the 4,096 bytes that a pipe shared with other workers takes in one piece."""
LONGEST_EXCEPTION: Final = 16_000
"""Characters of a traceback."""

_DROPPED: Final = ""
"""Waits among the lines, in place of those that were dropped."""


# What a line looks like ----------------------------------------------------------


def escape(text: str) -> str:
    """Text with everything that does not print escaped as in Python's strings.

    That takes newlines of every alphabet, terminal sequences, marks that turn
    the direction of writing, and lone surrogates, which no encoding takes.
    A backslash stays one: ``repr()`` in messages is frequent.

    >>> escape("caf\\u00e9\\x1b[2J\\u2028\\n")
    'café\\\\x1b[2J\\\\u2028\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _shorten(text: str, limit: int) -> str:
    """Both ends of what is longer than that: they say what happened and why."""
    left_out = len(text) - limit
    if left_out <= 0:
        return text
    half = limit // 2
    return f"{text[:half]} ... ({left_out:,} characters left out) ... {text[-half:]}"


class _Formatter(logging.Formatter):
    """What the formatters have in common: the parts, safe to be put in a line."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """When it happened: ISO 8601, UTC, milliseconds."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The message with its arguments, and how many like it were left out."""
        try:
            message = record.getMessage()
        # An argument is a user's exception at times, whose __str__ may raise anything.
        except Exception as error:
            message = f"(its arguments do not fit: {type(error).__name__}) {record.msg!r}"
        message = escape(_shorten(message, LONGEST_MESSAGE))
        left_out = vars(record).get("left_out", 0)
        return f"{message} ({left_out:,} more like this left out)" if left_out else message

    def exception_lines(self, record: logging.LogRecord) -> list[str]:
        """The lines of the traceback, if the record has one, and of its stack."""
        parts = []
        if record.exc_info and record.exc_info[1] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        text = _shorten("\n".join(parts), LONGEST_EXCEPTION)
        # Not splitlines(): it also swallows the newlines that are to be seen escaped.
        return [escape(line) for line in text.split("\n")] if text else []


class TextFormatter(_Formatter):
    """A line for people; those of a traceback follow, each behind a bar.

    >>> record = logging.makeLogRecord(
    ...     {"created": 1795611662.123, "levelname": "ERROR", "msg": "no\\nway"}
    ... )
    >>> print(TextFormatter().format(record))
    2026-11-25T13:01:02.123Z error no\\nway
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's line or lines, without a newline at the end."""
        first = f"{self.formatTime(record)} {record.levelname.lower()} {self.formatMessage(record)}"
        # Behind the bar, an exception's text cannot pass for a line of its own.
        return "\n".join([first, *(f"  | {line}" for line in self.exception_lines(record))])


class JsonFormatter(_Formatter):
    """A JSON object on one line: time, level, logger, message, pid, perhaps exception.

    Message and exception are escaped as in text before JSON does it again: who
    prints what a program has decoded is safe too. The exception's lines are
    told apart by newlines.

    >>> record = logging.makeLogRecord(
    ...     {"created": 1795611662.123, "levelname": "ERROR", "name": "nbnet", "process": 7}
    ... )
    >>> print(JsonFormatter().format(record))  # doctest: +NORMALIZE_WHITESPACE
    {"time": "2026-11-25T13:01:02.123Z", "level": "error", "logger": "nbnet",
     "message": "", "pid": 7}
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object, in ASCII, without a newline at the end."""
        fields: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.formatMessage(record),
            "pid": record.process,
        }
        if lines := self.exception_lines(record):
            fields["exception"] = "\n".join(lines)
        return json.dumps(fields)


FORMATTERS: Final[dict[str, Callable[[], logging.Formatter]]] = {
    "text": TextFormatter,
    "json": JsonFormatter,
}
"""The formatters by the name of their style."""


# How many lines there are --------------------------------------------------------


@dataclass(slots=True)
class _Kind:
    """Records of one kind: when the last ones were let through, and how many were not since."""

    times: deque[float]
    left_out: int = 0


class RateLimit(logging.Filter):
    """Lets so many records of a kind through in any stretch of time.

    Of a kind are those with the same logger, level and message before its
    arguments are put in. What is less than a warning is never limited: who asks
    for it wants it all. The next record let through has the number of those that were
    not in its attribute ``left_out``, which the formatters here add to the
    message.

    Args:
        burst: how many records, at least 1 ...
        period: ... in how many seconds.
        clock: monotonic seconds.

    >>> limit = RateLimit(burst=1)
    >>> record = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "no"})
    >>> limit.filter(record), limit.filter(record)
    (True, False)
    """

    def __init__(
        self,
        burst: int = BURST,
        period: float = PERIOD,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._burst = burst
        self._period = period
        self._clock = clock
        # In the order of their last use, so that the one longest unused is forgotten.
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        # A signal handler may log while its thread is in here.
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is let through; marks it if others were not."""
        if record.levelno < logging.WARNING:
            return True
        # Anything may be a message, and what is no text is not made one here: it may raise.
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        key = record.name, record.levelno, template
        with self._lock:
            now = self._clock()
            kind = self._kinds.pop(key, None) or _Kind(deque(maxlen=self._burst))
            self._kinds[key] = kind
            if len(self._kinds) > KINDS:
                del self._kinds[next(iter(self._kinds))]
            if len(kind.times) == self._burst and now - kind.times[0] < self._period:
                kind.left_out += 1
                return False
            kind.times.append(now)
            vars(record)["left_out"] = kind.left_out
            kind.left_out = 0
            return True


# Who writes them -----------------------------------------------------------------


class _LineHandler(logging.Handler):
    """What writes lines, and counts those that could not be written.

    It writes to the stream's descriptor and not to the stream: a write that hangs
    would hold the lock of its buffer, and with it everyone who prints or flushes,
    before a fork above all; and one that fails would leave its line there, to fail
    whoever flushes.

    Args:
        stream: where to write to; one without a descriptor is in memory.
        formatter: what makes the lines.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._abandoned = False
        self._lost = 0
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"
        try:
            self._fd = stream.fileno()
        except OSError:
            self._fd = -1

    def line(self, record: logging.LogRecord) -> str | None:
        """The record's line; None if none can be made. A log call never raises."""
        try:
            return f"{self.format(record)}\n"
        # Tracebacks are made by code of the user's too. The usual thing would be to print
        # one, which can block.
        except Exception:
            return None

    def write_line(self, line: str) -> None:
        """Write a line, after one about those that were lost before it."""
        try:
            self._write(self._say_lost() + line if self._lost else line)
            self._lost = 0
        # The reader is gone, the disk is full, the stream is closed: that may pass.
        except (OSError, ValueError):
            self._lost += line != _DROPPED

    def _say_lost(self) -> str:
        record = logging.makeLogRecord(
            {
                "name": "nbnet",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "%s log records lost: they could not be written",
                "args": (f"{self._lost:,}",),
            }
        )
        return f"{self.format(record)}\n"

    def _write(self, text: str) -> None:
        """Write it all, however long that takes.

        Raises:
            OSError: it cannot be written.
            ValueError: the stream is closed.
        """
        if self._fd < 0:
            self._stream.write(text)
            self._stream.flush()
            return
        rest = memoryview(text.encode(self._encoding, "backslashreplace"))
        while rest and not self._abandoned:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # whoever shares the terminal or pipe may have set that
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll()


class DirectHandler(_LineHandler):
    """Writes each line itself, however long that takes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        line = self.line(record)
        self._lost += line is None
        self.write_line(line or _DROPPED)


class BackgroundHandler(_LineHandler):
    """Hands lines to a thread that writes them, up to ``BACKLOG`` waiting.

    ``logging.handlers`` has a queue and a listener for it too, but that one's
    end takes as long as the stream does, and fails when the queue is full.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__(stream, formatter)
        # Putting in it is safe in a signal handler and in a forked child,
        # which cannot be said of a Queue with a bound of its own.
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._write_all, name="nbnet log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have the record written, or drop it if too many wait."""
        line = self.line(record)
        if line is not None and self._lines.qsize() < BACKLOG:
            self._lines.put(line)
        else:
            self._drop()

    def stop(self) -> None:
        """Write what waits, for ``FLUSH_TIMEOUT`` seconds at most, and end."""
        self._lines.put(None)
        self._thread.join(FLUSH_TIMEOUT)
        self._abandoned = True

    def _drop(self) -> None:
        if not self._dropped:
            self._lines.put(_DROPPED)
        self._dropped += 1

    def _take_dropped(self) -> int:
        self.acquire()  # which whoever emits holds
        try:
            dropped, self._dropped = self._dropped, 0
            return dropped
        finally:
            self.release()

    def _write_all(self) -> None:
        """Write lines until told to stop; the thread."""
        while (line := self._lines.get()) is not None and not self._abandoned:
            if line == _DROPPED:
                self._lost += self._take_dropped()
            self.write_line(line)


@contextlib.contextmanager
def logging_to(
    stream: TextIO,
    *,
    level: int,
    style: str = "text",
    threaded: bool = True,
    logger: str = "nbnet",
) -> Iterator[None]:
    """Have a logger and those below it write to a stream, as long as this lasts.

    Its handlers, level and propagation are as before afterwards. What waits to
    be written then has ``FLUSH_TIMEOUT`` seconds. A forked child enters this
    anew, within its parent's: the child has no thread that would write for the
    handler that it inherits, and what waits there is written by the parent.

    Args:
        stream: what to write to, ``sys.stderr`` for one.
        level: what is less severe is not logged, one of ``logging``'s numbers.
        style: how lines look: "text" or "json".
        threaded: whether a thread of its own writes. A process that forks must
            have none, and says so little that it may wait for its reader.
        logger: the logger's name; "" is the root of all.

    Raises:
        ValueError: there is no such style.

    >>> import io
    >>> stream = io.StringIO()
    >>> with logging_to(stream, level=logging.INFO, style="json"):
    ...     logging.getLogger("nbnet").info("%d requests answered", 3)
    >>> json.loads(stream.getvalue())["message"]
    '3 requests answered'
    """
    if style not in FORMATTERS:
        raise ValueError(f"{style!r} is no style of logs: expected one of {', '.join(FORMATTERS)}")
    log = logging.getLogger(logger)
    handler = (BackgroundHandler if threaded else DirectHandler)(stream, FORMATTERS[style]())
    # On the handler: a logger's filters do not see what comes from loggers below it.
    handler.addFilter(RateLimit())
    before = log.handlers[:], log.level, log.propagate
    _set_up(log, [handler], level, propagate=False)
    try:
        yield
    finally:
        handlers, level, propagate = before
        _set_up(log, handlers, level, propagate=propagate)
        if isinstance(handler, BackgroundHandler):
            handler.stop()
        handler.close()


def _set_up(
    log: logging.Logger, handlers: list[logging.Handler], level: int, *, propagate: bool
) -> None:
    for handler in log.handlers[:]:
        log.removeHandler(handler)
    for handler in handlers:
        log.addHandler(handler)
    log.setLevel(level)
    log.propagate = propagate
