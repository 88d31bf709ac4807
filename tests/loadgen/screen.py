"""What a person sees after a program has drawn on a terminal."""

from __future__ import annotations

import os
import re
import select

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")


def read_available(fd: int) -> str:
    """What has been written to a terminal and not been read yet."""
    data = b""
    while select.select([fd], [], [], 0)[0]:
        data += os.read(fd, 65536)
    return data.decode()


def screen(text: str) -> list[str]:
    """The lines on the screen after the text, without empty ones below.

    Knows what is used to redraw lines: carriage return, newline, cursor up,
    erase line; fails on anything else that would move the cursor.
    """
    lines = [""]
    row = column = 0
    for arguments, command, carriage_return, newline, character in _TOKEN.findall(text):
        if character:
            lines[row] = lines[row].ljust(column)
            lines[row] = lines[row][:column] + character + lines[row][column + 1 :]
            column += 1
        elif carriage_return:
            column = 0
        elif newline:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif command == "A":
            row = max(0, row - int(arguments or 1))
        elif command == "K":
            assert arguments == "2", "the whole line is erased"
            lines[row] = ""
        else:
            assert command in ("m", "h", "l"), f"the cursor is moved by {command}"
    while lines and not lines[-1]:
        lines.pop()
    return [line.rstrip() for line in lines]
