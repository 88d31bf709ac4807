"""Writes the parts of pages that are made from the code; see the package."""

from __future__ import annotations

import argparse
import sys

from manual.generated import stale
from manual.pages import name_of


def main() -> int:
    """Write them, or only say which are not current; the exit code."""
    parser = argparse.ArgumentParser(prog="manual", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if there is any")
    check = parser.parse_args().check
    found = False
    for path, due in stale():
        found = True
        print(f"{name_of(path)}: {'is not current' if check else 'written'}")
        if not check:
            path.write_text(due, "utf-8")
    return int(check and found)


if __name__ == "__main__":
    sys.exit(main())
