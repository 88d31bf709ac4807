"""Logging: what lines look like, how many there are, and that nothing waits for a reader."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbnet import logs
from nbnet.logs import JsonFormatter, RateLimit, TextFormatter, escape, logging_to

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

log = logging.getLogger("nbnet")


def record(message: object = "hello", *arguments: object, **more: Any) -> logging.LogRecord:
    fields = {"name": "nbnet", "levelno": logging.ERROR, "levelname": "ERROR"}
    return logging.makeLogRecord({**fields, "msg": message, "args": arguments, **more})


def failed_with(error: Exception) -> logging.LogRecord:
    """A record of an error that was raised and caught."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    return record("it failed", exc_info=(caught.type, caught.value, caught.tb))


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


# What a line looks like ----------------------------------------------------------


def test_a_line_for_people() -> None:
    made = record("%s: closing", "1.2.3.4:5", created=1795611662.1239)
    assert TextFormatter().format(made) == "2026-11-25T13:01:02.123Z error 1.2.3.4:5: closing"


def test_a_line_for_programs() -> None:
    made = record("%s: closing", "1.2.3.4:5", created=1795611662.1239, process=42)
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2026-11-25T13:01:02.123Z",
        "level": "error",
        "logger": "nbnet",
        "message": "1.2.3.4:5: closing",
        "pid": 42,
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, caf\u00e9 \u65e5\u672c", "plain text, caf\u00e9 \u65e5\u672c"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\0\x07\x1b[2J\x7f", r"\x00\x07\x1b[2J\x7f"),
        ("\x85\x9b\xa0\xad", r"\x85\x9b\xa0\xad"),
        ("\u2028\u2029\u202e\ufeff", r"\u2028\u2029\u202e\ufeff"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\U000e0001", r"\U000e0001"),
        (r"a\nb", r"a\nb"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


anything = st.text(st.characters(exclude_categories=()) | st.sampled_from(LINE_ENDS + "\x1b\0"))


@given(anything)
def test_no_message_makes_more_than_a_line(message: str) -> None:
    text = TextFormatter().format(record("%s", message))
    assert text.isprintable()
    text.encode()  # no lone surrogate is left
    line = JsonFormatter().format(record("%s", message))
    assert line.isprintable()
    assert line.isascii()
    assert text.endswith(json.loads(line)["message"])


@given(anything)
def test_no_exception_passes_for_a_line(message: str) -> None:
    made = failed_with(RuntimeError(message))
    first, *others = TextFormatter().format(made).split("\n")
    assert re.fullmatch(f"{STAMP} error it failed", first)
    assert others[0] == "  | Traceback (most recent call last):"
    assert all(line.startswith("  | ") and line.isprintable() for line in others)
    line = JsonFormatter().format(made)
    assert line.isprintable()
    assert all(part.isprintable() for part in json.loads(line)["exception"].split("\n"))


def test_a_forged_line_stays_in_its_traceback() -> None:
    made = failed_with(RuntimeError("no\n2026-11-25T13:01:02.123Z info all is well\x85fine"))
    text = TextFormatter().format(made)
    assert re.findall(f"^{STAMP}", text, re.MULTILINE) == [text[:24]]
    assert text.endswith(
        "\n  | RuntimeError: no\n  | 2026-11-25T13:01:02.123Z info all is well\\x85fine"
    )


def test_a_traceback_in_json_keeps_its_lines() -> None:
    line = JsonFormatter().format(failed_with(RuntimeError("no\x1b")))
    assert "\n" not in line
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback (most recent call last):\n  File ")
    assert exception.endswith("\nRuntimeError: no\\x1b")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_stack_is_shown_like_a_traceback(formatter: logging.Formatter) -> None:
    made = record("here", stack_info="Stack (most recent call last):\n  one\x1b")
    newline = "\n  | " if isinstance(formatter, TextFormatter) else r"\n"
    assert f"Stack (most recent call last):{newline}  one" in formatter.format(made)
    assert "\x1b" not in formatter.format(made)


def test_an_exception_that_is_none_is_not_shown() -> None:
    made = record("fine", exc_info=(None, None, None))
    assert TextFormatter().format(made).endswith("Z error fine")
    assert "exception" not in json.loads(JsonFormatter().format(made))


def test_what_is_very_long_is_cut_in_the_middle() -> None:
    line = TextFormatter().format(record("%s", "a" + 100_000 * "\0" + "z"))
    assert line.count(r"\x00") == logs.LONGEST_MESSAGE - 2
    assert " a\\x00" in line
    assert "... (98,002 characters left out) ..." in line
    assert line.endswith("\\x00z")
    text = TextFormatter().format(failed_with(RuntimeError(100_000 * "x" + "z")))
    assert len(text) < logs.LONGEST_EXCEPTION + 500
    assert "Traceback (most recent call last)" in text
    assert text.endswith("xxxz")


@pytest.mark.parametrize(
    ("message", "arguments", "line"),
    [
        ("%d\n", ("no number",), r"(its arguments do not fit: TypeError) '%d\n'"),
        ("%s %s", ("one",), "(its arguments do not fit: TypeError) '%s %s'"),
        (
            "failed: %s",
            (UnspeakableError(),),
            "(its arguments do not fit: RuntimeError) 'failed: %s'",
        ),
    ],
)
def test_a_message_that_cannot_be_put_together_is_a_line_too(
    message: str, arguments: tuple[object, ...], line: str
) -> None:
    text = TextFormatter().format(record(message, *arguments))
    assert re.fullmatch(f"{STAMP} error {re.escape(line)}", text)


# How many lines there are --------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passed(limit: RateLimit, made: Callable[[], logging.LogRecord], count: int) -> list[str]:
    """What is logged of that many records."""
    lines = []
    for _ in range(count):
        each = made()
        if limit.filter(each):
            lines.append(TextFormatter().format(each).split(" ", 2)[2])
    return lines


def test_what_repeats_is_said_so_often_and_then_counted() -> None:
    clock = Clock()
    limit = RateLimit(clock=clock)
    assert passed(limit, record, 1244) == ["hello"] * 10
    clock.now += 9.99
    assert passed(limit, record, 1) == []
    clock.now += 0.01
    assert passed(limit, record, 12) == ["hello (1,235 more like this left out)"] + ["hello"] * 9
    clock.now += 10
    assert passed(limit, record, 2) == ["hello (2 more like this left out)", "hello"]


def test_no_stretch_of_time_has_more_than_the_burst() -> None:
    clock = Clock()
    limit = RateLimit(burst=3, period=10, clock=clock)
    times = []
    for _ in range(1000):
        clock.now += 0.5
        if limit.filter(record()):
            times.append(clock.now)
    assert len(times) > 100
    assert all(later - earlier >= 10 for earlier, later in zip(times, times[3:], strict=False))


def test_kinds_are_limited_apart_and_arguments_make_no_kind() -> None:
    limit = RateLimit(burst=1, clock=Clock())
    assert limit.filter(record("%s failed", "a"))
    assert not limit.filter(record("%s failed", "b"))
    assert limit.filter(record("%s was lost", "a"))
    assert limit.filter(record("%s failed", "a", name="nbnet.other"))
    assert limit.filter(record("%s failed", "a", levelno=logging.WARNING))
    assert not limit.filter(record("%s failed", "a", levelno=logging.WARNING))


def test_debug_is_not_limited() -> None:
    limit = RateLimit(burst=1, clock=Clock())
    assert all(limit.filter(record(levelno=logging.DEBUG)) for _ in range(100))
    assert all(limit.filter(record(levelno=logging.INFO)) for _ in range(100))


def test_a_message_that_is_no_text_is_limited_by_its_type() -> None:
    clock = Clock()
    limit = RateLimit(burst=1, clock=clock)
    assert limit.filter(record(ValueError("one")))
    assert not limit.filter(record(ValueError("two")))
    assert not limit.filter(record(ValueError("two")))
    assert limit.filter(record(UnspeakableError()))
    clock.now += 10
    assert passed(limit, lambda: record(ValueError("100 %s")), 1) == [
        "100 %s (2 more like this left out)"
    ]


def test_few_kinds_are_remembered_and_the_longest_unused_is_forgotten() -> None:
    limit = RateLimit(burst=1, clock=Clock())
    for number in range(logs.KINDS):
        assert limit.filter(record(f"kind {number}"))
    assert not limit.filter(record("kind 0"))
    assert limit.filter(record("one more"))
    assert len(limit._kinds) == logs.KINDS
    assert not limit.filter(record("kind 0"))
    assert limit.filter(record("kind 1"))


# Who writes them -----------------------------------------------------------------


class Pipe:
    """A pipe that is written to as a process writes to its stderr."""

    def __init__(self, stack: contextlib.ExitStack, encoding: str = "utf-8") -> None:
        reader, writer = os.pipe()
        self.reader = stack.enter_context(os.fdopen(reader, encoding=encoding, newline="\n"))
        self.writer = stack.enter_context(os.fdopen(writer, "w", encoding=encoding))


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with contextlib.ExitStack() as stack:
        yield Pipe(stack)


def level_and_message(line: str) -> str:
    assert re.match(f"{STAMP} ", line)
    return line.rstrip("\n").split(" ", 1)[1]


def read_all_of(stream: TextIO, total: int) -> tuple[list[str], int]:
    """The records logged and the number said to be lost, once both make ``total``."""
    lines: list[str] = []
    lost = 0
    while len(lines) + lost < total:
        line = level_and_message(stream.readline())
        if match := re.fullmatch(r"warning ([0-9,]+) log records lost: .*", line):
            lost += int(match[1].replace(",", ""))
        else:
            lines.append(line)
    assert len(lines) + lost == total
    return lines, lost


def writing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nbnet log"]


@contextlib.contextmanager
def set_up(handler: logging.Handler, level: int) -> Iterator[None]:
    """The logger as it may have been before."""
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def test_lines_are_written_at_once_and_the_logger_is_as_before_afterwards(pipe: Pipe) -> None:
    own = logging.NullHandler()
    with set_up(own, logging.CRITICAL):
        with logging_to(pipe.writer, level=logging.INFO):
            log.debug("too small")
            log.info("one")
            assert level_and_message(pipe.reader.readline()) == "info one"
            logging.getLogger("nbnet.below").error("t\u00e9o")
            assert level_and_message(pipe.reader.readline()) == "error t\u00e9o"
            assert own not in log.handlers
            assert not log.propagate
        assert log.handlers == [own]
        assert log.level == logging.CRITICAL
        assert log.propagate
    assert not writing_threads()
    pipe.writer.close()
    assert pipe.reader.read() == ""


def test_the_logger_is_as_before_after_an_error_too(pipe: Pipe) -> None:
    before = log.handlers[:]
    with pytest.raises(KeyError), logging_to(pipe.writer, level=logging.INFO):
        raise KeyError
    assert log.handlers == before
    assert log.propagate
    assert not writing_threads()


def test_json_is_asked_for_by_name(pipe: Pipe) -> None:
    with logging_to(pipe.writer, level=logging.INFO, style="json"):
        log.info("one")
        assert json.loads(pipe.reader.readline())["pid"] == os.getpid()
    with pytest.raises(ValueError, match="'xml' is no style of logs: expected one of text, json"):
        logging_to(pipe.writer, level=logging.INFO, style="xml").__enter__()
    assert not writing_threads()


def test_what_repeats_is_limited(pipe: Pipe) -> None:
    with logging_to(pipe.writer, level=logging.INFO):
        for _ in range(logs.BURST + 5):
            logging.getLogger("nbnet.below").error("again")
    pipe.writer.close()
    assert len(pipe.reader.readlines()) == logs.BURST


def test_nothing_waits_for_a_reader_and_what_is_lost_is_said(pipe: Pipe) -> None:
    total = 5000
    with logging_to(pipe.writer, level=logging.DEBUG):
        for number in range(total):  # would hang here
            log.debug("%06d %s", number, 100 * "x")
        lines, lost = read_all_of(pipe.reader, total)
        assert lost > 0
        assert len(lines) >= logs.BACKLOG
        assert lines == sorted(lines)
        assert lines[0].startswith("debug 000000 ")
        log.debug("readable again")
        assert level_and_message(pipe.reader.readline()) == "debug readable again"


def test_the_end_does_not_wait_for_a_reader_either(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT", 0.2)
    started = time.monotonic()
    with logging_to(pipe.writer, level=logging.DEBUG):
        for _ in range(2000):
            log.debug("%s", 100 * "x")
    assert logs.FLUSH_TIMEOUT <= time.monotonic() - started < 30
    # It hangs in its write still; let out of it, it writes no more.
    [thread] = writing_threads()
    assert thread.daemon
    os.set_blocking(pipe.reader.fileno(), False)
    size = 0
    while thread.is_alive():
        if select.select([pipe.reader], [], [], 0.01)[0]:
            size += len(os.read(pipe.reader.fileno(), 1 << 20))
    pipe.writer.close()
    size += len(os.read(pipe.reader.fileno(), 1 << 20))
    assert size < 2000 * 100 // 2


def test_the_end_waits_for_what_can_be_written(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT", 60)
    received: list[tuple[list[str], int]] = []
    reading = threading.Thread(target=lambda: received.append(read_all_of(pipe.reader, 5000)))
    with logging_to(pipe.writer, level=logging.DEBUG):
        for number in range(5000):
            log.debug("%06d %s", number, 100 * "x")
        reading.start()
    assert not writing_threads()
    pipe.writer.close()
    reading.join()
    assert received
    assert pipe.reader.read() == ""


def test_a_descriptor_that_does_not_block_loses_nothing(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.set_blocking(pipe.writer.fileno(), False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(pipe.writer.fileno(), b"x" * 4096)
    waiting = threading.Event()
    poll = select.poll

    def poll_and_tell() -> select.poll:
        waiting.set()
        return poll()

    monkeypatch.setattr(select, "poll", poll_and_tell)
    with logging_to(pipe.writer, level=logging.INFO):
        log.info("one")
        log.info("two")
        assert waiting.wait(30)
        assert pipe.reader.read(filled) == "x" * filled
        assert level_and_message(pipe.reader.readline()) == "info one"
        assert level_and_message(pipe.reader.readline()) == "info two"


def test_a_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    with logging_to(pipe.writer, level=logging.INFO):
        pipe.reader.close()
        for _ in range(5):
            log.error("to nobody")
    assert not writing_threads()


class FailingStream(io.StringIO):
    """In memory; its first writes fail."""

    failures = 3

    def write(self, text: str, /) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError("no space left")
        return super().write(text)


@pytest.mark.parametrize("threaded", [True, False])
def test_records_lost_to_errors_are_counted_once_writing_works_again(threaded: bool) -> None:
    stream = FailingStream()
    with logging_to(stream, level=logging.INFO, threaded=threaded):
        for number in range(5):
            log.info("%d", number)
    assert [level_and_message(line) for line in stream.getvalue().splitlines()] == [
        "warning 3 log records lost: they could not be written",
        "info 3",
        "info 4",
    ]


@pytest.mark.parametrize("threaded", [True, False])
def test_a_full_disk_leaves_nothing_in_the_stream_that_would_fail_later(threaded: bool) -> None:
    with Path("/dev/full").open("w") as full:
        with logging_to(full, level=logging.INFO, threaded=threaded):
            log.error("lost")
        full.flush()


@pytest.mark.parametrize("threaded", [True, False])
def test_a_closed_stream_is_no_error(threaded: bool) -> None:
    stream = io.StringIO()
    with logging_to(stream, level=logging.INFO, threaded=threaded):
        stream.close()
        log.error("to nobody")
    assert not writing_threads()


def test_an_encoding_that_lacks_a_character_gets_it_escaped() -> None:
    with contextlib.ExitStack() as stack:
        pipe = Pipe(stack, "ascii")
        with logging_to(pipe.writer, level=logging.INFO):
            log.info("caf\u00e9")
            assert level_and_message(pipe.reader.readline()) == r"info caf\xe9"


@pytest.mark.parametrize("threaded", [True, False])
def test_a_record_that_cannot_be_formatted_is_counted_and_raises_nothing(
    pipe: Pipe, capfd: pytest.CaptureFixture[str], threaded: bool
) -> None:
    class Nameless(str):
        __slots__ = ()

        def __repr__(self) -> str:
            raise RuntimeError("no words")

    with logging_to(pipe.writer, level=logging.INFO, threaded=threaded):
        log.info(Nameless("%d"), "no number")
        assert (
            level_and_message(pipe.reader.readline())
            == "warning 1 log records lost: they could not be written"
        )
    assert capfd.readouterr().err == ""  # where logging would print why


FORK = """
import logging, os, sys
from nbnet import logs
from nbnet.logs import logging_to

logs.FLUSH_TIMEOUT = 0.2  # nobody reads what the parent has to say
log = logging.getLogger("nbnet")
stuck_reader, stuck = os.pipe()
with logging_to(open(stuck, "w"), level=logging.DEBUG, style="json"):
    for _ in range(3000):
        log.debug("of the parent %s", 100 * "x")
    pid = os.fork()
    if not pid:
        log.error("before it has a log of its own: lost, but no hang")
        with logging_to(sys.stderr, level=logging.INFO, style="json"):
            for _ in range(12):
                log.error("of the child")
        os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 7, code
    print(pid)
"""


def test_a_forked_child_has_a_log_of_its_own() -> None:
    """Forked while the parent's queue is full and its thread hangs in a write."""
    ran = subprocess.run(
        # From Python 3.12 on, a fork in a process with threads is warned of.
        [sys.executable, "-W", "ignore", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["of the child"] * logs.BURST
    assert {line["pid"] for line in lines} == {int(ran.stdout)}
