"""How commands fail: one line, the right exit code, no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
        (KeyboardInterrupt(), 130, ""),
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
    assert "Traceback" not in failed.stderr
