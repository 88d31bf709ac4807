"""How commands fail: one line, the right exit code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer

from nbnet.command import CommandError, make_app, parsed, run


def running(name: str, error: BaseException) -> None:
    app = make_app()

    @app.command()
    def fail() -> None:
        raise error

    arguments = sys.argv
    sys.argv = [name]
    try:
        run(app, name)
    finally:
        sys.argv = arguments


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("no such thing", 7), 7, "tool: no such thing\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "tool: cannot write standard output: No space left on device\n",
        ),
        (
            OSError(24, "Too many open files"),
            1,
            "tool: out of resources: Too many open files\n",
        ),
        (FileNotFoundError(2, "No such file", "x"), 1, "tool: [Errno 2] No such file: 'x'\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(), 0, ""),
        (SystemExit(5), 5, ""),
        (SystemExit("why"), 1, "tool: why\n"),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", sys.stdout)  # put back at the end
    with pytest.raises(SystemExit) as ended:
        running("tool", error)
    assert ended.value.code == code
    assert capsys.readouterr().err.replace("Aborted.\n", "") == line


def test_an_option_that_does_not_parse_is_named() -> None:
    assert parsed("--number", int, "3") == 3
    with pytest.raises(CommandError, match="--number: invalid literal"):
        parsed("--number", int, "three")


@pytest.mark.parametrize("command", ["nbnet", "nbclient", "loadgen"])
def test_every_command_says_its_version_and_survives_a_full_disk(command: str) -> None:
    program = [sys.executable, "-m", command, "--version"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=20)
    assert done.stdout.startswith(f"{command} ")
    with open("/dev/full", "w") as full:  # noqa: PTH123  (a device)
        failed = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=20)
    assert failed.returncode == 1
    assert failed.stderr == (f"{command}: cannot write standard output: No space left on device\n")


def test_what_is_held_back_fails_before_the_interpreter_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would exit with 120; an error that came before is the one that is told."""
    with open("/dev/full", "w") as full:  # noqa: PTH123  (a device)
        monkeypatch.setattr("sys.stdout", full)
        for error, code, line in (
            (SystemExit(0), 1, "tool: cannot write standard output: No space left on device\n"),
            (CommandError("no such thing", 7), 7, "tool: no such thing\n"),
        ):
            full.write("held back")
            with pytest.raises(SystemExit) as ended:
                running("tool", error)
            assert (ended.value.code, capsys.readouterr().err) == (code, line)


def test_a_reader_that_has_enough_is_no_error_to_be_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        pipe.write("held back")
        with pytest.raises(SystemExit) as ended:
            running("tool", SystemExit(0))
    assert (ended.value.code, capsys.readouterr().err) == (1, "")


def test_a_command_may_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # closed
    with pytest.raises(SystemExit) as ended:
        run(lambda **_: None, "tool")  # type: ignore[arg-type]
    assert ended.value.code == 0


def test_ctrl_c_outside_of_the_command_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(interrupted, "tool")  # type: ignore[arg-type]
    assert (ended.value.code, capsys.readouterr().err) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--nosuch"], "tool: no such option: --nosuch (see tool --help)\n"),
        (["--count"], "tool: option '--count' requires an argument (see tool --help)\n"),
        (["--flag=yes"], "tool: option '--flag' does not take a value (see tool --help)\n"),
        ([], ""),
    ],
)
def test_what_the_parser_refuses_is_a_line_too(
    arguments: list[str],
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = make_app(no_args_is_help=True)

    @app.command(no_args_is_help=True)
    def work(count: str = "1", flag: Annotated[bool, typer.Option("--flag")] = False) -> None:
        """Never called."""

    monkeypatch.setattr("sys.stdout", sys.stdout)  # put back at the end
    monkeypatch.setattr("sys.argv", ["tool", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(app, "tool")
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (2, line)
    assert ("Usage: tool" in said.out) == (not arguments)
