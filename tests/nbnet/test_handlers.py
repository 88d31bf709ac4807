"""Handlers and how they are found by name."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, cast

import pytest

from nbnet.handlers import Bound, Context, Handler, bind, load_handler, reverse, takes_context


def test_the_default_handler_reverses() -> None:
    assert reverse(b"abc") == b"cba"
    assert load_handler("nbnet.handlers:reverse") is reverse


def test_a_handler_is_found_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handlers_of_a_user.py").write_text(
        "class Answers:\n    @staticmethod\n    def upper(payload): return payload.upper()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path / "elsewhere")])
    upper = cast(Bound, load_handler("handlers_of_a_user:Answers.upper"))
    assert upper(b"abc") == b"ABC"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse", "expected module:function"),
        (":reverse", "expected module:function"),
        ("nbnet.handlers:", "expected module:function"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError"),
        ("nbnet.handlers:missing", "nbnet.handlers has no missing"),
        ("nbnet.handlers:reverse.missing", "nbnet.handlers has no reverse.missing"),
        ("nbnet.framing:HEADER_SIZE", "HEADER_SIZE is not callable"),
    ],
)
def test_a_bad_name_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_handler(name)


@pytest.mark.parametrize(
    ("number", "source", "message"),
    [
        (1, "async def handle(payload): return payload", "handle is async, expected a plain"),
        (2, "def handle(): return b''", "too many positional arguments: expected one that takes"),
        (3, "def handle(a, b, c): return a", "missing a required argument: 'c': expected one"),
    ],
)
def test_what_cannot_be_called_with_a_payload_is_refused(
    number: int, source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"unfit_handler_{number}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_handler(f"{name}:handle")


def test_what_tells_nothing_of_its_parameters_is_taken() -> None:
    assert load_handler("builtins:bytes")(b"abc") == b"abc"  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (1, "1 / 0", "ZeroDivisionError: division by zero"),
        (2, "raise SystemExit(9)", "SystemExit: 9"),
        (3, "raise RuntimeError('two\\nlines')", "RuntimeError: two"),
    ],
)
def test_a_module_that_fails_to_import_is_a_bad_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str, reason: str
) -> None:
    (tmp_path / f"broken_handlers{number}.py").write_text(f"{code}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"cannot import broken_handlers{number}: {reason}$"):
        load_handler(f"broken_handlers{number}:f")


class Answers:
    def __call__(self, payload: bytes, context: Context) -> bytes:
        return payload + str(context.peer).encode()

    def method(self, payload: bytes) -> bytes:
        return payload


def with_default(payload: bytes, encoding: str = "utf-8") -> bytes:
    return payload.decode(encoding).encode()


def keyword_only(payload: bytes, *, context: Context | None = None) -> bytes:
    return payload + str(context).encode()


@pytest.mark.parametrize(
    ("handler", "takes"),
    [
        (reverse, False),
        (bytes.upper, False),
        (operator.itemgetter(0), False),
        (Answers().method, False),
        (with_default, False),
        (keyword_only, False),
        (lambda *arguments: arguments[0], False),
        (Answers(), True),
        (lambda payload, context: payload, True),  # noqa: ARG005
    ],
)
def test_who_declares_a_second_parameter_gets_the_context(handler: Any, takes: bool) -> None:
    assert takes_context(handler) is takes


def test_a_bound_handler_passes_the_context_on() -> None:
    handler: Handler = Answers()
    assert bind(handler, Context("somebody"))(b"for ") == b"for somebody"
