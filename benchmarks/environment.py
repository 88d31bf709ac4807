"""Where peers live: an environment of their own, compiled C programs, and what the machine is.

Nothing of the project depends on a peer. They are installed by name, in whatever
version is current, into a virtual environment under the cache directory, and their
versions are told beside every figure. C programs are compiled when there is a
compiler; without one, what needs them is left out with a word.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
PACKAGES = ("gevent", "locust", "trio", "twisted", "uvloop")
_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOADER_CORE = _CORES[0], _CORES[-1]
"""The processors that servers and what loads them are pinned to: 0 and 1 where there are two."""

_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Environment:
    """What peers run with.

    Attributes:
        python: the interpreter that finds the installed ones.
        versions: of what is installed.
        binaries: the compiled programs by name; empty without a compiler.
        compiler: the first line of what it says of itself.
    """

    python: Path
    versions: dict[str, str]
    binaries: dict[str, Path]
    compiler: str | None

    def has(self, *packages: str) -> bool:
        """Whether all of them are installed."""
        return all(package in self.versions for package in packages)

    def peer(self, module: str, *arguments: str) -> list[str]:
        """The command that runs a module of ``peers/``."""
        return [str(self.python), str(PEERS / module), *arguments]


def default_directory() -> Path:
    """Where the environment is kept if nothing else is said."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "nbnet-benchmarks"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options by which people say where peers live."""
    parser.add_argument(
        "--environment",
        type=Path,
        default=default_directory(),
        metavar="DIRECTORY",
        help="where peers are installed (default: %(default)s)",
    )
    parser.add_argument(
        "--no-install",
        action="store_true",
        help="install nothing: measure the peers that this Python has",
    )


def prepare(directory: Path, *, install: bool = True) -> Environment:
    """Install the peers if they are not yet, compile the C programs, and tell what there is.

    Raises:
        SystemExit: the peers cannot be installed.
    """
    if SERVER_CORE == LOADER_CORE:
        print("one processor: servers and loaders share it, ratios mean little", file=sys.stderr)
    directory.mkdir(parents=True, exist_ok=True)
    python = Path(sys.executable)
    if install:
        home = directory / f"python{sys.version_info.major}.{sys.version_info.minor}"
        python = home / "bin" / "python"
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(home)], "make an environment")
        if len(_versions(python)) < len(PACKAGES):
            print(f"installing {', '.join(PACKAGES)} into {home}", file=sys.stderr, flush=True)
            _run([str(python), "-m", "pip", "install", "-q", *PACKAGES], "install the peers")
    binaries, compiler = compile_all(directory)
    return Environment(python, _versions(python), binaries, compiler)


def compile_all(directory: Path) -> tuple[dict[str, Path], str | None]:
    """Compile ``peers/*.c`` there; the programs by name, and which compiler it was."""
    cc = shutil.which("cc")
    if cc is None:
        print("no C compiler (cc): the C server and loader are left out", file=sys.stderr)
        return {}, None
    binaries = {}
    for source in sorted(PEERS.glob("*.c")):
        binary = directory / source.stem
        _run([cc, "-O2", "-o", str(binary), str(source)], f"compile {source.name}")
        binaries[source.stem] = binary
    said = subprocess.run([cc, "--version"], capture_output=True, text=True, check=True)
    return binaries, said.stdout.partition("\n")[0]


def machine(environment: Environment) -> dict[str, str]:
    """Date, machine and versions, for beside the figures."""
    described = {
        "date": f"{datetime.now(UTC):%d %B %Y}".lstrip("0"),
        "processor": _processor(),
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "nbnet": version("nbnet"),
    }
    described.update(environment.versions)
    if environment.compiler is not None:
        described["C compiler"] = environment.compiler
    return described


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _versions(python: Path) -> dict[str, str]:
    done = subprocess.run(
        [str(python), "-c", _VERSIONS, *PACKAGES], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise SystemExit(f"cannot {what}: {''.join(last) or shutil.which(command[0])}")
