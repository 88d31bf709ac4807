"""Standard streams that cannot be written: what is lost, and that nothing fails for it later."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from support.forked import exit_code, in_child

from nbnet import streams

FULL = Path("/dev/full")


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A file on a disk that is full; what waits in its buffer cannot be written."""
    stream = FULL.open("w")
    yield stream
    streams.flush(stream)
    stream.close()


def pipe() -> tuple[TextIO, TextIO]:
    reading, writing = os.pipe()
    return os.fdopen(reading), os.fdopen(writing, "w")


def test_what_cannot_be_written_is_lost_and_all_else_is_not(full: TextIO) -> None:
    stream = streams.lossy(full)
    print("lost", file=stream)
    print("lost", file=stream, flush=True)
    reader, writer = pipe()
    with reader, writer:
        stream = streams.lossy(writer)
        print("gr\u00fc\u00dfe", file=stream)
        assert reader.readline() == "gr\u00fc\u00dfe\n"
        reader.close()
        print("lost", file=stream)  # the reader is gone


def test_a_stream_that_does_not_wait_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, poll = threading.Event(), select.poll

    class Announced:
        def __init__(self) -> None:
            self._poll = poll()
            self.register = self._poll.register

        def poll(self) -> None:
            waiting.set()
            self._poll.poll()

    monkeypatch.setattr(select, "poll", Announced)
    reader, writer = pipe()
    with reader, writer:
        os.set_blocking(writer.fileno(), False)
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += os.write(writer.fileno(), b"x" * 4096)
        stream = streams.lossy(writer)
        telling = threading.Thread(target=lambda: print("told", file=stream))
        telling.start()
        assert waiting.wait(20)
        assert reader.read(filled) == "x" * filled
        assert reader.readline() == "told\n"
        telling.join()


def test_what_a_full_disk_does_not_take_is_dropped_and_said_once(full: TextIO) -> None:
    full.write("lost")
    failed = streams.flush(full)
    assert failed is not None
    assert failed.errno == errno.ENOSPC
    assert streams.flush(full) is None, "nothing is held any more"
    assert os.fstat(full.fileno()).st_rdev == FULL.stat().st_rdev, "it leads where it led"


def test_a_stream_that_is_closed_has_nothing_to_be_written() -> None:
    assert streams.flush(None) is None
    stream = io.StringIO()
    stream.close()
    assert streams.flush(stream) is None


def test_a_stream_without_a_descriptor_that_fails_keeps_what_it_holds() -> None:
    class Failing(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.EIO, "failed")

    assert streams.flush(Failing()) is not None


def test_standard_error_is_guarded_if_it_is_the_one_of_the_process(
    monkeypatch: pytest.MonkeyPatch, full: TextIO
) -> None:
    monkeypatch.setattr(sys, "stderr", full)
    streams.guard_stderr()
    assert sys.stderr is full, "somebody has put it there"
    monkeypatch.setattr(sys, "__stderr__", full)
    streams.guard_stderr()
    print("lost", file=sys.stderr)


def test_standard_error_that_is_closed_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child: descriptor 2 is closed there."""

    def closed() -> None:
        os.close(2)
        sys.stderr = None
        streams.guard_stderr()
        assert os.readlink("/proc/self/fd/2") == os.devnull  # noqa: PTH115
        assert os.get_inheritable(2)
        os.close(2)
        os.close(0)  # which is what the next file gets
        sys.stderr = None
        streams.guard_stderr()
        print("lost", file=sys.stderr, flush=True)
        assert os.get_inheritable(2)

    monkeypatch.setattr(sys, "stderr", sys.stderr)
    assert exit_code(in_child(closed)) == 0
