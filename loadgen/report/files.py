"""Where reports go: files that are whole or not there, pipes, standard output (``-``).

What could not be written is noticed before a run, so that it does not cost one.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

STDOUT: Final = "-"
_NOT_REPLACED: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV))
"""What the kernel says of a mounted file, and of a folder that may not be written: then a
file is written in place. Not where the disk is full: that would cost what it held."""


def write(path: str, pieces: Iterable[str]) -> None:
    """Write text to a file, whole or not at all; ``-`` is standard output.

    What is no regular file (a pipe, a device) is written into, not replaced.
    Line ends stay as they are; files are UTF-8.

    Raises:
        OSError: it cannot be written.

    >>> write("-", ["one", " line\\n"])
    one line
    """
    if path == STDOUT:
        sys.stdout.writelines(pieces)
        sys.stdout.flush()
        return
    target = _target(path)
    if not target.exists():
        _replace(target, pieces, _usual_mode())
    elif not target.is_file():
        _overwrite(Path(path), pieces)
    else:
        # Made before anything is opened: they may be needed twice.
        text = "".join(pieces)
        try:
            _replace(target, [text], target.stat().st_mode)
        except OSError as error:
            if error.errno not in _NOT_REPLACED:
                raise
            _overwrite(target, [text])


def named(path: str) -> str:
    """What to call a file in a message.

    >>> named("-"), named("run.json")
    ('standard output', 'run.json')
    """
    return "standard output" if path == STDOUT else path


def check_writable(path: str) -> None:
    """Notice before a run that its figures could not be saved.

    Raises:
        OSError: ``write`` would not be able to write there.
    """
    if path == STDOUT:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed")
        return
    target = _target(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    place = target if target.exists() else target.parent
    place.stat()
    if not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check(chosen: Mapping[str, str]) -> None:
    """Notice before a run that its figures could not be saved.

    Args:
        chosen: option to path.

    Raises:
        ValueError: a file cannot be written, or two are the same; the message names
            the option.
    """
    for option, path in chosen.items():
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(f"{option}: cannot write {path}: {error.strerror}") from error
    check_apart(chosen)


def check_apart(paths: Mapping[str, str]) -> None:
    """Notice that two of several outputs would end up in one place.

    Args:
        paths: of each option that names one.

    Raises:
        ValueError: two are the same file, or both standard output.

    >>> check_apart({"--json": "-", "--csv": "series.csv"})
    >>> check_apart({"--json": "-", "--csv": "-"})
    Traceback (most recent call last):
    ValueError: --json and --csv: only one of them can be standard output
    """
    seen: dict[str, str] = {}
    for option, path in paths.items():
        # Devices and pipes take any number.
        if path != STDOUT and not is_replaced(path):
            continue
        place = path if path == STDOUT else str(_target(path))
        if place in seen:
            where = "be standard output" if path == STDOUT else f"be written to {path}"
            raise ValueError(f"{seen[place]} and {option}: only one of them can {where}")
        seen[place] = option


def is_replaced(path: str) -> bool:
    """Whether ``write`` makes a file there, so that it may be written again and again."""
    if path == STDOUT:
        return False
    target = _target(path)
    return target.is_file() or not target.exists()


def _target(path: str) -> Path:
    """Where a link leads."""
    return Path(os.path.realpath(path))


def _replace(target: Path, pieces: Iterable[str], mode: int) -> None:
    # Who is killed meanwhile leaves its part, whose name says what it was to become.
    with tempfile.NamedTemporaryFile(
        "w",
        encoding="utf-8",
        newline="",
        dir=target.parent,
        prefix=f".{target.name[:60]}.",
        delete=False,
    ) as file:
        part = Path(file.name)
        try:
            file.writelines(pieces)
            file.flush()
            part.chmod(mode)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _overwrite(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(pieces)


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
