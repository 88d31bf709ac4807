"""What is told of outcomes: to people in 80 columns, to programs as JSON."""

from __future__ import annotations

import json

from nbnet import __version__
from nbnet.conform import Outcome
from nbnet.conform_report import document, listing, report
from nbnet.conformance import cases, groups, parse_cases


def outcome(fields: str, fault: str, got: bytes, ended: str) -> Outcome:
    text = f'cases = [{{ name = "a", why = "what it shows", {fields} }}]'
    [case] = parse_cases("mine", text)
    return Outcome(case, fault, got, ended)


RIGHT = outcome('send = "00001a", expect = "00001a", end = "served"', "", b"00001a", "open")
PLUS = outcome(
    'send = "+0003abc", end = "closed"', "8 bytes more than are due", b"00003cba", "open"
)
CUT = outcome(
    'send = "00003abc", cut_every = 4, half_close = true, expect = "00003cba", end = "fin"',
    "reset, which costs replies on their way",
    b"00003cba",
    "reset",
)
LATER = outcome(
    'steps = [{ send = "\\r" }, { send = "\\n00001a", expect = "00001a" }], end = "silent"',
    "cannot connect: Connection refused",
    b"",
    "",
)
LEFT = outcome('send = "", leave = "close"', "the next connection: no answer", b"", "open")


def test_a_server_that_passes() -> None:
    said = report([RIGHT, RIGHT], "127.0.0.1:6789")
    assert said == (
        "group   cases  passed  failed\n"
        "mine        2       2       0\n"
        "all         2       2       0\n"
        "\n"
        "OK: 127.0.0.1:6789 passes 2 cases"
    )
    assert report([RIGHT], "unix:/s").endswith("\n\nOK: unix:/s passes 1 case")


def test_a_server_that_fails_is_told_what_was_sent_due_and_came() -> None:
    said = report([RIGHT, PLUS, CUT, LATER, LEFT], "127.0.0.1:6789")
    assert said == (
        "mine/a: what it shows\n"
        "  sent      +0003abc\n"
        "  expected  nothing, and then the end\n"
        "  got       00003cba, and then nothing, not even the end\n"
        "  fault     8 bytes more than are due\n"
        "\n"
        "mine/a: what it shows\n"
        "  sent      00003abc in 2 pieces and the end of sending\n"
        "  expected  00003cba, and then the end, in order\n"
        "  got       00003cba, and then it was reset\n"
        "  fault     reset, which costs replies on their way\n"
        "\n"
        "mine/a: what it shows\n"
        "  sent      \\r, a while later \\n00001a\n"
        "  expected  00001a, and then nothing, not even the end\n"
        "  fault     cannot connect: Connection refused\n"
        "\n"
        "mine/a: what it shows\n"
        "  sent      nothing\n"
        "  expected  nothing, and the client closes\n"
        "  got       nothing, and then nothing, not even the end\n"
        "  fault     the next connection: no answer\n"
        "\n"
        "group   cases  passed  failed\n"
        "mine        5       1       4\n"
        "all         5       1       4\n"
        "\n"
        "FAILED: 127.0.0.1:6789 fails 4 cases of 5"
    )


def test_of_long_replies_the_place_is_shown_where_they_differ() -> None:
    fields = (
        'send = { repeat = ["00001a", 100] }, expect = { repeat = ["00001a", 100] }, end = "served"'
    )
    got = b"00001a" * 50 + b"00001b" + b"00001a" * 49
    said = report([outcome(fields, "wrong from byte 305 on", got, "open")], "x").splitlines()
    assert said[1] == "  sent      00001a00001a00001a00001a00001a00001a00001a000... (600 bytes)"
    assert said[2:4] == [
        "  expected  ... from byte 289: 0001a00001a00001a00001a00001a00001a00001a0000...",
        "            (600 bytes), and the connection goes on",
    ]
    assert said[4].startswith("  got       ... from byte 289: 0001a00001a00001b00001a")
    early = b"00001b" + got[6:]
    said = report([outcome(fields, "wrong from byte 5 on", early, "open")], "x").splitlines()
    assert said[4].startswith("  got       00001b00001a00001a")


def test_everything_fits_into_80_columns() -> None:
    outcomes = [Outcome(case, "no answer", bytes(255), "open") for case in cases()]
    assert max(map(len, report(outcomes, "127.0.0.1:6789").splitlines())) <= 80


def test_the_list_has_every_case_under_its_group() -> None:
    lines = listing(cases(), groups()).splitlines()
    assert len(lines) == len(cases()) + len(groups())
    assert lines[0] == "sizes: requests of each kind of size, whole in one write"
    assert lines[1] == "  1      the shortest request"
    assert max(map(len, lines)) <= 110


def test_the_same_for_programs() -> None:
    told = document([RIGHT, PLUS], {"mine": "some cases"}, "127.0.0.1:6789", "reverse")
    assert json.loads(json.dumps(told)) == {
        "schema": "nbnet-conform/1",
        "version": __version__,
        "target": "127.0.0.1:6789",
        "expect": "reverse",
        "cases": 2,
        "passed": 1,
        "failed": 1,
        "groups": [{"name": "mine", "about": "some cases", "cases": 2, "passed": 1, "failed": 1}],
        "failures": [
            {
                "group": "mine",
                "name": "a",
                "why": "what it shows",
                "fault": "8 bytes more than are due",
                "sent": b"+0003abc".hex(),
                "from": 0,
                "expected": "",
                "expected_end": "closed",
                "got": b"00003cba".hex(),
                "ended": "open",
            }
        ],
    }
