"""The conformance suite of the wire protocol: its cases, which are data, and how they are read.

A case says what a client sends and in which pieces, what has to come back, and
how the connection ends. Nothing in it is of this server: ``nbnet conform`` plays
the cases against any other that reverses payloads, or echoes them. Cases stand
in ``nbnet/cases/*.toml``, a file for each group, in the order of the numbers in
their names, and a line for each case::

    about = "headers that are none"
    cases = [
      { name = "plus", why = "a sign is no digit", send = "+0003abc", end = "closed" },
    ]

The fields of a case:

``name``, ``why``
    what it is called within its group, and what it shows, in one line;
``send``, ``expect``
    bytes. A text is bytes as its characters' numbers are (``\\u00ff`` is the byte
    255). ``{ repeat = [BYTES, N] }``, ``{ numbered = N }`` (so many bytes of
    ``123451234612347...``), the same with ``backwards = true``, ``{ frames = [N, M] }``
    (requests whose payloads are the numbers N to M, of four digits) and
    ``{ replies = [N, M] }`` (the replies to them) stand for long ones, and a list
    for all of its items, one behind the other. Without ``expect`` nothing may come;
``cuts``, ``cut_every``
    where ``send`` is cut into pieces: at these positions, or every so many bytes.
    Each piece is a write of its own, a moment after the one before;
``half_close``
    the client ends its sending side then;
``late``
    the client reads nothing before all is sent, or the kernel takes no more;
``end``
    ``served``: the connection goes on, a further request is answered next;
    ``silent``: nothing more comes, and it stays open;
    ``fin``: the server closes it in order;
    ``closed``: the server ends it, in order or by a reset;
``leave``
    instead of ``expect`` and ``end``: the client goes after it has sent, by ``reset``
    or ``close``;
``steps``
    instead of ``send`` to ``late``: a list of tables with these, played in turn. What
    one expects has to be there before the next sends; if it expects nothing, nothing
    may come for a while.

After a case the server has to serve a new connection, whatever was done to it.
"""

from __future__ import annotations

import enum
import fnmatch
import functools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from typing import Any, Final

HEADER_SIZE: Final = 5
_FIRST_NUMBER: Final = 12345
_STEP: Final = frozenset({"send", "expect", "cuts", "cut_every", "half_close", "late"})
_CASE: Final = frozenset({"name", "why", "end", "leave", "steps"})


class End(enum.Enum):
    """How a connection has to end; see the top of this module."""

    SERVED = "served"
    SILENT = "silent"
    FIN = "fin"
    CLOSED = "closed"
    RESET_BY_CLIENT = "reset"
    CLOSED_BY_CLIENT = "close"

    @property
    def of_client(self) -> bool:
        """Whether it is the client that goes, and does not look at what comes."""
        return self in (End.RESET_BY_CLIENT, End.CLOSED_BY_CLIENT)

    @property
    def words(self) -> str:
        """The same for a sentence."""
        return _IN_WORDS[self]


_IN_WORDS: Final = {
    End.SERVED: "and the connection goes on",
    End.SILENT: "and then nothing, not even the end",
    End.FIN: "and then the end, in order",
    End.CLOSED: "and then the end",
    End.RESET_BY_CLIENT: "and the client resets",
    End.CLOSED_BY_CLIENT: "and the client closes",
}


@dataclass(frozen=True, slots=True)
class Step:
    """What a client sends, and what has to come back before it goes on.

    Attributes:
        data: what is sent.
        cuts: positions in ``data``, ascending, at which it is cut into writes.
        half_close: whether the client then ends its sending side.
        late: whether it reads nothing before that.
        expected: what has to come; if it is empty, nothing may.
    """

    data: bytes = b""
    cuts: tuple[int, ...] = ()
    half_close: bool = False
    late: bool = False
    expected: bytes = b""

    @property
    def pieces(self) -> list[bytes]:
        """The writes.

        >>> Step(b"00003abc", cuts=(2, 5)).pieces
        [b'00', b'003', b'abc']
        """
        if not self.data:
            return []
        return [self.data[start:end] for start, end in pairwise((0, *self.cuts, len(self.data)))]


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the suite.

    Attributes:
        group: what it belongs to, the name of its file.
        name: what it is called there.
        why: what it shows, in one line.
        steps: what is sent and expected, in turn.
        end: how the connection then has to end.
    """

    group: str
    name: str
    why: str
    steps: tuple[Step, ...]
    end: End

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def sent(self) -> bytes:
        """All that is sent."""
        return b"".join(step.data for step in self.steps)

    @property
    def expected(self) -> bytes:
        """All that has to come back."""
        return b"".join(step.expected for step in self.steps)

    def echoed(self) -> Case:
        """The same for a server that echoes payloads instead of reversing them.

        >>> step = Step(b"00003abc", expected=b"00003cba")
        >>> Case("group", "name", "why", (step,), End.SERVED).echoed().expected
        b'00003abc'
        """
        steps = tuple(replace(step, expected=_reversed_again(step.expected)) for step in self.steps)
        return replace(self, steps=steps)


def _reversed_again(replies: bytes) -> bytes:
    frames = []
    at = 0
    while at < len(replies):
        start = at + HEADER_SIZE
        end = start + int(replies[at:start])
        frames += [replies[at:start], replies[start:end][::-1]]
        at = end
    return b"".join(frames)


def cases(only: str = "*") -> list[Case]:
    """The cases of the suite, group by group.

    Args:
        only: those whose ``group/name``, or whose group, this pattern of a shell fits.

    >>> [case] = cases("zero-length/alone")
    >>> case.sent, case.end
    (b'00000', <End.CLOSED: 'closed'>)
    """
    return [case for group, document in _documents() for case in _cases_of(group, document, only)]


def groups() -> dict[str, str]:
    """What each group is about, by its name, in order."""
    return {name: document["about"] for name, document in _documents()}


def parse_cases(group: str, text: str) -> list[Case]:
    """The cases in a file of a group.

    Raises:
        ValueError: it is none; the message names the case and what is wrong with it.

    >>> parse_cases("mine", 'cases = [{ name = "a", why = "b", send = "+", end = "over" }]')
    Traceback (most recent call last):
    ValueError: mine/a: end: 'over' is none of served, silent, fin, closed
    """
    return _cases_of(group, tomllib.loads(text))


@functools.cache
def _documents() -> tuple[tuple[str, dict[str, Any]], ...]:
    """The files as they are read, in the order of the numbers in their names."""
    files = resources.files("nbnet").joinpath("cases").iterdir()
    return tuple(
        (file.name.removesuffix(".toml").partition("-")[2], tomllib.loads(file.read_text("utf-8")))
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".toml")
    )


def _cases_of(group: str, document: Mapping[str, Any], only: str = "*") -> list[Case]:
    found: dict[str, Case] = {}
    for number, fields in enumerate(document["cases"], 1):
        name = fields.get("name", f"case {number}")
        if not any(fnmatch.fnmatchcase(text, only) for text in (group, f"{group}/{name}")):
            continue
        if name in found:
            raise ValueError(f"{group}/{name}: there is another one of this name")
        try:
            found[name] = _case_of(group, fields)
        except (KeyError, TypeError, ValueError) as error:
            said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{group}/{name}: {said}") from None
    return list(found.values())


def _case_of(group: str, fields: Mapping[str, Any]) -> Case:
    rest = {key: value for key, value in fields.items() if key not in _CASE}
    if rest and "steps" in fields:
        raise ValueError("steps stand instead of what a step has")
    steps = tuple(map(_step_of, fields.get("steps", [rest])))
    if not steps:
        raise ValueError("there is no step")
    end = _end_of(fields)
    last = steps[-1]
    if any(step.late for step in steps[1:]):
        raise ValueError("a client that has begun to read cannot do it late")
    if any(step.half_close for step in steps[:-1]) or (last.half_close and end is not End.FIN):
        raise ValueError("behind a half-close nothing can come but fin")
    if end.of_client and last.expected:
        raise ValueError("a client that leaves expects nothing")
    return Case(group, fields["name"], fields["why"], steps, end)


def _end_of(fields: Mapping[str, Any]) -> End:
    key = "leave" if "leave" in fields else "end"
    if key == "leave" and "end" in fields:
        raise ValueError("leave stands instead of end")
    known = {end.value: end for end in End if end.of_client == (key == "leave")}
    if fields[key] not in known:
        raise ValueError(f"{key}: {fields[key]!r} is none of {', '.join(known)}")
    return known[fields[key]]


def _step_of(fields: Mapping[str, Any]) -> Step:
    unknown = fields.keys() - _STEP
    if unknown:
        raise ValueError(f"there is no field {min(unknown)!r}")
    data = _bytes_of(fields.get("send", ""))
    if "cut_every" in fields:
        cuts = tuple(range(fields["cut_every"], len(data), fields["cut_every"]))
    else:
        cuts = tuple(fields.get("cuts", ()))
    if list(cuts) != sorted({cut for cut in cuts if 0 < cut < len(data)}):
        raise ValueError(f"cuts: {list(cuts)} are no places inside of {len(data)} bytes")
    return Step(
        data,
        cuts,
        half_close=fields.get("half_close", False),
        late=fields.get("late", False),
        expected=_bytes_of(fields.get("expect", "")),
    )


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("latin-1")
    if isinstance(value, list):
        return b"".join(map(_bytes_of, value))
    match value:
        case {"repeat": [what, int(times)]}:
            return _bytes_of(what) * times
        case {"numbered": int(size)}:
            return _numbered()[:size][::-1] if value.get("backwards") else _numbered()[:size]
        case {"frames": [int(first), int(last)]}:
            return b"".join(b"00004" + number for number in _numbers(first, last))
        case {"replies": [int(first), int(last)]}:
            return b"".join(b"00004" + number[::-1] for number in _numbers(first, last))
    raise ValueError(f"{value!r} stands for no bytes")


@functools.cache
def _numbered() -> bytes:
    """As many bytes as the longest payload has, of numbers of five digits."""
    return b"".join(b"%05d" % (_FIRST_NUMBER + n) for n in range(20_000))[:99_999]


def _numbers(first: int, last: int) -> Iterator[bytes]:
    return (b"%04d" % number for number in range(first, last + 1))
