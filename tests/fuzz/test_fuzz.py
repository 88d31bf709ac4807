"""The corpus and some thousand inputs through every target; whether the targets have teeth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from support import reference
from support.breaks import forgotten_when_abandoned

import nbclient.sync_connection
from fuzz.__main__ import main
from fuzz.mutator import block
from fuzz.running import Found, fuzz, run_block
from fuzz.targets import TARGETS, corpus, quiet
from loadgen.connection import Connection as LoadConnection
from loadgen.load import Load
from nbclient.exchange import Ledger
from nbnet.connection import Connection
from nbnet.framing import FrameDecoder


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    inputs = corpus(name)
    assert len(inputs) > 20
    with quiet():
        for data in inputs:
            TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_some_inputs(name: str) -> None:
    assert run_block((name, 20_26, 0, 500)) == Found(inputs=500)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", TARGETS)
def test_a_million_inputs(name: str) -> None:
    found, _ = fuzz(name, 1_000_000, seed=20_27, processes=2)
    assert found == Found(inputs=1_000_000)


def test_any_bytes_are_an_input() -> None:
    for target in TARGETS.values():
        for size in range(8):
            target(b"\xff" * size)


# The machinery ---------------------------------------------------------------------


def test_a_seed_gives_the_same_inputs_again_and_another_one_does_not() -> None:
    blocks = [list(islice(block(*which), 50)) for which in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert blocks[0] == blocks[1]
    assert blocks[0] != blocks[2]
    assert blocks[0] != blocks[3]


def test_most_inputs_get_somewhere() -> None:
    readings = [reference.read(data[6:], 0, 99_999) for data in islice(block(1, 1), 1000)]
    with_payloads = sum(len(reading.payloads) > 0 for reading in readings)
    faulty = sum(reading.fault is not None for reading in readings)
    assert 0.5 < with_payloads / len(readings) < 0.9
    assert 0.3 < faulty / len(readings) < 0.8


def bad(data: bytes) -> None:
    if b"x" in data[6:] and data[:6] != bytes(6):
        raise KeyError(f"{len(data)} bytes")


def test_a_finding_is_made_small_and_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TARGETS, "decoder", bad)
    assert main(["--target", "decoder", "--inputs", "1000"]) == 1
    said = capsys.readouterr().out
    assert "failed\n" in said
    assert "x'\n        KeyError: '7 bytes'" in said
    assert said.endswith("inputs\n")
    monkeypatch.setitem(TARGETS, "decoder", lambda _: None)
    assert main(["--target", "decoder", "--inputs", "1000"]) == 0
    assert capsys.readouterr().out.endswith(" 0 failed\nOK: none failed\n")


# Whether the targets have teeth: what is broken on purpose is found ------------------


def _partial_payload_given(patch: pytest.MonkeyPatch) -> None:
    def end_data(self: FrameDecoder, data: bytes, _payloads: list[bytes]) -> None:
        self.offset += len(data)

    patch.setattr(FrameDecoder, "_end_data", end_data)


def _alone_although_part_of_a_frame_is_held(patch: pytest.MonkeyPatch) -> None:
    hold = FrameDecoder._hold

    def keep(self: FrameDecoder, data: bytes, start: int, need: int) -> None:
        hold(self, data, start, need)
        self.alone = self._headers

    patch.setattr(FrameDecoder, "_hold", keep)


def _header_waited_for(patch: pytest.MonkeyPatch) -> None:
    hold = FrameDecoder._hold

    def wait(self: FrameDecoder, data: bytes, start: int, need: int) -> None:
        hold(self, data, start, max(5, need) if need else 0)

    patch.setattr(FrameDecoder, "_hold", wait)


def _line_feeds_skipped(patch: pytest.MonkeyPatch) -> None:
    feed = FrameDecoder.feed
    patch.setattr(FrameDecoder, "feed", lambda self, data: feed(self, data.lstrip(b"\r\n")))


def _half_a_request_lost_on_moving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "pack", lambda self: (b"", bytes(self.unsent)))


def _waiting_requests_lost_on_moving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Connection, "pack", lambda self: (self._decoder.held, bytes(self.unsent)))


def _unsent_replies_lost_on_moving(patch: pytest.MonkeyPatch) -> None:
    pack = Connection.pack
    patch.setattr(Connection, "pack", lambda self: (pack(self)[0], b""))


def _a_byte_too_many_taken(patch: pytest.MonkeyPatch) -> None:
    take = Connection.take

    def more(self: Connection, count: int, now: float) -> None:
        take(self, min(len(self.unsent), count + (count > 5)), now)

    patch.setattr(Connection, "take", more)


def _replies_as_they_are_done(patch: pytest.MonkeyPatch) -> None:
    collect = Connection.collect

    def unordered(self: Connection, now: float) -> bytes:
        done = sorted(self._jobs, key=lambda job: not job.done)
        self._jobs.clear()
        self._jobs.extend(done)
        return collect(self, now)

    patch.setattr(Connection, "collect", unordered)


def _replies_too_many_let_through(patch: pytest.MonkeyPatch) -> None:
    def find_fault(self: Ledger, data: bytes, _unasked: bool) -> None:
        if self._decoder.error:
            find(self, data, False)

    find = Ledger._find_fault
    patch.setattr(Ledger, "_find_fault", find_fault)


def _anything_behind_a_sole_reply(patch: pytest.MonkeyPatch) -> None:
    def sole(data: bytes) -> bytes | None:
        header = data[:5]
        size = int(header) if len(header) == 5 and header.isdigit() else len(data)
        return data[5 : 5 + size] if len(data) >= 5 + size else None

    patch.setattr(nbclient.sync_connection, "sole_reply", sole)


def _in_step_with_a_byte_left(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "idle", property(lambda self: not self.outstanding))


def _taken_apart_backwards(patch: pytest.MonkeyPatch) -> None:
    take_apart = LoadConnection.take_apart

    def backwards(self: LoadConnection) -> None:
        self.parts = self.parts[:1] + self.parts[:0:-1]
        take_apart(self)

    patch.setattr(LoadConnection, "take_apart", backwards)


def _ready_although_a_part_has_come(patch: pytest.MonkeyPatch) -> None:
    def look(self: LoadConnection) -> None:
        self.ready = self.message.expected if self.message and not self.unsent else None

    patch.setattr(LoadConnection, "look", look)


def _fresh_for_each_read(patch: pytest.MonkeyPatch) -> None:
    receive = Load.receive

    def forgetful(self: Load, connection: Any, data: bytes, now: int) -> None:
        connection.matched = 0
        receive(self, connection, data, now)

    patch.setattr(Load, "receive", forgetful)


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("decoder", _partial_payload_given),
        ("decoder", _alone_although_part_of_a_frame_is_held),
        ("decoder", _header_waited_for),
        ("decoder", _line_feeds_skipped),
        ("server", _alone_although_part_of_a_frame_is_held),
        ("server", _half_a_request_lost_on_moving),
        ("server", _waiting_requests_lost_on_moving),
        ("server", _unsent_replies_lost_on_moving),
        ("server", _a_byte_too_many_taken),
        ("server", _replies_as_they_are_done),
        ("client", _partial_payload_given),
        ("client", _replies_too_many_let_through),
        ("client", forgotten_when_abandoned),
        ("client", _anything_behind_a_sole_reply),
        ("client", _in_step_with_a_byte_left),
        ("load", _taken_apart_backwards),
        ("load", _ready_although_a_part_has_come),
        ("load", _fresh_for_each_read),
    ],
)
def test_what_is_broken_is_found(
    name: str, breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with quiet():
        for data in block(1, 0):
            try:
                TARGETS[name](data)
            except Exception:  # which one, is no matter
                return
    pytest.fail("nothing was found")
