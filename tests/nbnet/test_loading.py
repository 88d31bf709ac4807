"""Functions of users are found by their names."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from nbnet.loading import load_function


def test_a_function_is_found_by_its_name() -> None:
    assert load_function("math:sqrt", "handler") is math.sqrt
    assert load_function("os.path:join", "handler")("a", "b") == "a/b"


def test_dots_reach_into_classes_and_objects() -> None:
    assert load_function("pathlib:Path.cwd", "handler")() == Path.cwd()


@pytest.mark.parametrize("path", [["elsewhere"], ["", "elsewhere"]])
def test_the_current_directory_is_searched(
    path: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"functions_of_a_user_{len(path)}"
    (tmp_path / f"{name}.py").write_text("def double(text): return text * 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", path)
    assert load_function(f"{name}:double", "handler")(b"ab") == b"abab"
    assert sys.path == ["", "elsewhere"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "expected module:function, as in mymodule:handle"),
        ("sqrt", "expected module:function, as in mymodule:handle"),
        (":sqrt", "expected module:function, as in mymodule:handle"),
        ("math:", "expected module:function, as in mymodule:handle"),
        ("math:missing", "math has no missing"),
        ("math:sqrt.missing", "math has no sqrt.missing"),
        ("math:.sqrt", "math has no .sqrt"),
        ("math:a:b", "math has no a:b"),
        ("math:pi", "pi is not callable"),
        (
            "no_such_module:f",
            ("cannot import no_such_module: ModuleNotFoundError: No module named 'no_such_module'"),
        ),
        (
            ".relative:f",
            (
                "cannot import .relative: TypeError: the 'package' argument is required to perform "
                "a relative import for '.relative'"
            ),
        ),
    ],
)
@pytest.mark.parametrize("what", ["handler", "expectation"])
def test_a_name_that_is_none_is_refused_with_the_reason(name: str, what: str, says: str) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        load_function(name, what)
    assert str(caught.value) == f"{what} {name!r}: {says}"


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (1, "1 / 0", "ZeroDivisionError: division by zero"),
        (2, "raise SystemExit(9)", "SystemExit: 9"),
        (3, "raise RuntimeError('two\\nlines')", "RuntimeError: two"),
        (4, "raise RuntimeError", "RuntimeError: "),
        (5, "def", "SyntaxError: invalid syntax (failing_module_5.py, line 1)"),
    ],
)
def test_a_module_that_fails_to_import_is_told_with_its_error(
    number: int, code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"failing_module_{number}"
    (tmp_path / f"{module}.py").write_text(f"{code}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cannot import") as caught:
        load_function(f"{module}:f", "handler")
    assert str(caught.value) == f"handler '{module}:f': cannot import {module}: {reason}"
