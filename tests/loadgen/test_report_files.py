"""Files are whole or not there, and what cannot be written is noticed in time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from loadgen.report.files import check_apart, check_writable, is_replaced, write

TEXT = ["grüße\r\n", "a second line\n"]
WRITTEN = "grüße\r\na second line\n".encode()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("an older run")
    write(str(path), TEXT)
    assert path.read_bytes() == WRITTEN
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_usual_mode(tmp_path: Path) -> None:
    path, usual = tmp_path / "run.json", tmp_path / "usual"
    write(str(path), iter(TEXT))
    usual.touch()
    assert path.read_bytes() == WRITTEN
    assert path.stat().st_mode == usual.stat().st_mode


def test_text_is_written_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    write("-", ["two ", "pieces\n"])
    assert capsys.readouterr().out == "two pieces\n"


def test_a_link_is_followed_and_the_mode_of_a_file_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "run.json", tmp_path / "link.json"
    path.touch(mode=0o600)
    link.symlink_to(path)
    write(str(link), TEXT)
    assert link.is_symlink()
    assert path.read_bytes() == WRITTEN
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_into_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(str(path), iter(TEXT))
    reader.join()
    assert read == [WRITTEN]
    assert path.is_fifo()


def test_a_file_in_a_folder_that_takes_no_new_ones_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text("an older and much longer run than this one")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)  # root may write everywhere
    write(str(path), iter(TEXT))
    assert path.read_bytes() == WRITTEN
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_made_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new.json"
    with pytest.raises(ZeroDivisionError):
        write(str(path), (str(1 / each) for each in (1, 0)))
    path.write_text("an older run")
    with pytest.raises(ZeroDivisionError):
        write(str(path), (str(1 / each) for each in (1, 0)))
    assert path.read_text() == "an older run"
    assert list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_written_is_noticed_before_the_run(tmp_path: Path) -> None:
    check_writable("-")
    check_writable(os.devnull)
    check_writable(str(tmp_path / "new.json"))
    with pytest.raises(IsADirectoryError):
        check_writable(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        check_writable(str(tmp_path / "missing" / "run.json"))


def test_standard_output_that_is_closed_is_noticed_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OSError, match="standard output is closed"):
        check_writable("-")


def test_a_folder_that_may_not_be_written_is_noticed_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(PermissionError):
        check_writable(str(tmp_path / "run.json"))


def test_a_folder_in_place_of_a_file_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write(str(path), TEXT)
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


def test_a_folder_that_went_away_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(str(tmp_path / "missing" / "run.json"), TEXT)


def test_only_files_are_written_again_and_again(tmp_path: Path) -> None:
    new, old, pipe = tmp_path / "new", tmp_path / "old", tmp_path / "pipe"
    old.touch()
    os.mkfifo(pipe)
    assert is_replaced(str(new))
    assert is_replaced(str(old))
    assert not is_replaced(str(pipe))
    assert not is_replaced(str(tmp_path))
    assert not is_replaced("-")


def test_two_outputs_to_one_place_are_refused(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(path)
    os.mkfifo(pipe)
    check_apart({"--json": str(path), "--csv": "-", "--hgrm": str(tmp_path / "other")})
    check_apart({"--json": str(pipe), "--csv": str(pipe)})
    with pytest.raises(ValueError, match="--json and --hlog: only one of them can be standard"):
        check_apart({"--json": "-", "--csv": str(path), "--hlog": "-"})
    with pytest.raises(ValueError, match="--csv and --hgrm: only one of them can be written to /"):
        check_apart({"--csv": str(path), "--hgrm": str(link)})
