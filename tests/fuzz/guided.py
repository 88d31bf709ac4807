"""Let coverage lead to inputs that reach other code, with atheris, and keep those.

    pip install atheris
    PYTHONPATH=tests python -m fuzz.guided decoder [--seconds 60]

Begins with the target's corpus, and rewrites it with the smallest set of inputs that
reaches all that was reached. An input on which the target fails is printed, and then
the exit code is 1 and nothing rewritten. Nothing else needs atheris: the corpus is run
by the tests, and ``python -m fuzz`` makes inputs of its own.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LONGEST = 400
"""Bytes of an input."""
WATCHED = ["nbnet.framing", "nbnet.connection", "nbclient", "loadgen.load", "loadgen.connection"]
"""Where coverage is looked at."""
CHILD = "--child"
ITSELF = "FUZZ_GUIDED_ITSELF"
"""Names the program that libFuzzer is to start for a part of its work."""


def main() -> int:
    """Run the command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz.guided",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("fuzz.guided: atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    from fuzz.targets import CORPUS, TARGETS, corpus, kept

    if options.target not in TARGETS:
        parser.error(f"{options.target!r} is no target: {', '.join(TARGETS)}")
    with tempfile.TemporaryDirectory() as place:
        seeds, smallest = Path(place, "seeds"), Path(place, "smallest")
        for directory in (seeds, smallest):
            directory.mkdir()
        for number, data in enumerate(corpus(options.target)):
            (seeds / f"{number:05}").write_bytes(data)
        limits = [f"-max_total_time={options.seconds}", f"-max_len={LONGEST}"]
        code = _child(options.target, place, str(seeds), *limits)
        crashes = list(Path(place).glob("crash-*"))
        for crash in crashes:
            print(f"failed: {crash.read_bytes()!r}")
        if code or crashes:
            return 1
        _child(options.target, place, "-merge=1", str(smallest), str(seeds))
        inputs = {path.read_bytes() for path in smallest.iterdir()} - set(kept("found"))
    file = CORPUS / f"{options.target}.txt"
    comment = file.read_text().splitlines()[0]
    lines = [repr(data) for data in sorted(inputs, key=lambda data: (len(data), data))]
    file.write_text("\n".join([comment, *lines, ""]))
    print(f"{len(lines)} inputs are in {file}")
    return 0


def _child(target: str, place: str, *arguments: str) -> int:
    """Run libFuzzer, which ends its process, writes where it stands, and starts itself again."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    itself = Path(place, "libfuzzer")
    itself.write_text(f'#!/bin/sh\nexec {sys.executable} -m fuzz.guided {CHILD} {target} "$@"\n')
    itself.chmod(0o700)
    return subprocess.run(
        [itself, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), ITSELF: str(itself)},
        check=False,
    ).returncode


def child(target: str, arguments: list[str]) -> None:
    """Run libFuzzer in this process; does not return."""
    atheris: Any = importlib.import_module("atheris")  # which is in no extra
    with atheris.instrument_imports(include=WATCHED):
        from fuzz.targets import TARGETS, quiet
    with quiet():
        atheris.Setup([os.environ[ITSELF], *arguments], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
