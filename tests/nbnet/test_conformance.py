"""The cases of the conformance suite: what stands in the files, and how it is read."""

from __future__ import annotations

from collections import Counter

import pytest

from nbnet.conformance import Case, End, Step, cases, groups, parse_cases
from nbnet.framing import FrameDecoder, FrameError, encode_frame


def one(fields: str) -> Case:
    [case] = parse_cases("mine", f'cases = [{{ name = "a", why = "b", {fields} }}]')
    return case


def test_there_are_hundreds_in_every_group_some_and_no_two_are_the_same() -> None:
    every = cases()
    assert len(every) >= 500
    assert list(dict.fromkeys(case.group for case in every)) == list(groups())
    assert min(Counter(case.group for case in every).values()) >= 8
    assert len({(case.steps, case.end) for case in every}) == len(every)
    assert len({str(case) for case in every}) == len(every)


def decoded(case: Case) -> tuple[bytes, bool, int]:
    """The replies that are due by this package's own decoder, whether it finds an
    error, and how many bytes of a frame are left.
    """
    decoder = FrameDecoder()
    payloads = []
    for piece in (piece for step in case.steps for piece in step.pieces):
        try:
            payloads += decoder.feed(piece)
        except FrameError:
            break
    replies = b"".join(encode_frame(payload[::-1]) for payload in payloads)
    return replies, decoder.error is not None, decoder.unfinished


@pytest.mark.parametrize("group", groups())
def test_what_is_expected_is_what_a_decoder_makes_of_it(group: str) -> None:
    for case in cases(group):
        replies, broken, unfinished = decoded(case)
        if case.end.of_client:
            continue
        assert replies == case.expected, case
        if case.end is End.SERVED:
            assert not broken, case
            assert not unfinished, case
        elif case.end is End.SILENT:
            assert not broken, case
        else:
            assert broken or case.steps[-1].half_close, case


def test_what_each_line_shows_is_said_in_one_line() -> None:
    for case in cases():
        assert 0 < len(case.why) < 75, case
        assert len(str(case)) < 50, case
    assert all(0 < len(about) <= 75 for about in groups().values())


def test_cases_are_chosen_by_group_and_by_name() -> None:
    assert {case.group for case in cases("cr-lf")} == {"cr-lf"}
    assert {case.name for case in cases("*/plus")} == {"plus"}
    assert [str(case) for case in cases("sizes/1")] == ["sizes/1"]
    assert cases("nothing") == []


def test_the_fields_of_a_case() -> None:
    case = one('send = "00003abc", cuts = [2, 5], expect = "00003cba", end = "served"')
    assert case == Case(
        "mine", "a", "b", (Step(b"00003abc", (2, 5), expected=b"00003cba"),), End.SERVED
    )
    assert str(case) == "mine/a"
    [step] = one(
        'send = "abcdefg", cut_every = 3, late = true, half_close = true, end = "fin"'
    ).steps
    assert step.pieces == [b"abc", b"def", b"g"]
    assert step.late
    assert step.half_close
    assert one('send = "a", leave = "reset"').end is End.RESET_BY_CLIENT
    assert one('send = "a", leave = "close"').end is End.CLOSED_BY_CLIENT
    case = one('steps = [{ send = "0" }, { send = "0001a", expect = "00001a" }], end = "silent"')
    assert case.sent == b"00001a"
    assert case.expected == b"00001a"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ('""', b""),
        ('"\\u0000\\u00ff\\r\\n"', b"\x00\xff\r\n"),
        ('["a", "b"]', b"ab"),
        ('{ repeat = ["ab", 3] }', b"ababab"),
        ('{ repeat = [["a", { repeat = ["b", 2] }], 2] }', b"abbabb"),
        ("{ numbered = 12 }", b"123451234612"),
        ("{ numbered = 12, backwards = true }", b"216432154321"),
        ("{ frames = [8, 10] }", b"000040008000040009000040010"),
        ("{ replies = [8, 10] }", b"000048000000049000000040100"),
    ],
)
def test_how_bytes_are_written(value: str, data: bytes) -> None:
    assert one(f'send = {value}, end = "closed"').sent == data


def test_the_longest_payload_can_be_numbered() -> None:
    sent = one('send = { numbered = 99999 }, end = "closed"').sent
    assert len(sent) == 99_999
    assert sent.endswith(b"323423234332344"[:14])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ('send = "a"', "there is no 'end'"),
        ('send = "a", end = "over"', "end: 'over' is none of served, silent, fin, closed"),
        ('send = "a", leave = "fin"', "leave: 'fin' is none of reset, close"),
        ('send = "a", leave = "reset", end = "fin"', "leave stands instead of end"),
        ('send = "a", leave = "reset", expect = "a"', "a client that leaves expects nothing"),
        ('sent = "a", end = "fin"', "there is no field 'sent'"),
        ('send = "a", steps = [], end = "fin"', "steps stand instead of what a step has"),
        ('send = 3, end = "fin"', "3 stands for no bytes"),
        ('send = { repeat = "a" }, end = "fin"', "{'repeat': 'a'} stands for no bytes"),
        ('send = "\\u0100", end = "fin"', "'latin-1' codec can't encode character"),
        ('send = "abc", cuts = [3], end = "fin"', "cuts: [3] are no places inside of 3 bytes"),
        ('send = "abc", cuts = [2, 1], end = "fin"', "cuts: [2, 1] are no places"),
        ('half_close = true, end = "closed"', "behind a half-close nothing can come but fin"),
        (
            'steps = [{ half_close = true }, { send = "a" }], end = "fin"',
            "behind a half-close nothing can come but fin",
        ),
        ('steps = [{ send = "a" }, { late = true }], end = "fin"', "cannot do it late"),
        ('steps = [{ sent = "a" }], end = "fin"', "there is no field 'sent'"),
        ('steps = [], end = "fin"', "there is no step"),
    ],
)
def test_what_is_no_case_is_said_in_a_line(fields: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^mine/a: ") as caught:
        one(fields)
    assert said in str(caught.value)


def test_a_name_is_given_once_and_has_to_be_there() -> None:
    line = '{ name = "a", why = "b", send = "+", end = "closed" }'
    with pytest.raises(ValueError, match="mine/a: there is another one of this name"):
        parse_cases("mine", f"cases = [{line}, {line}]")
    with pytest.raises(ValueError, match="mine/case 1: there is no 'name'"):
        parse_cases("mine", 'cases = [{ why = "b", end = "fin" }]')


def test_for_a_server_that_echoes() -> None:
    for case in cases("order"):
        assert case.echoed().expected == case.sent
        assert case.echoed().echoed() == case
