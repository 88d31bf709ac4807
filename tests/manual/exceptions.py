"""What of the manual is not done, or done otherwise than it stands there: the one list.

Each entry has to be met with somewhere, or the tests fail. Of commands that are not
run the options are looked at all the same.
"""

from __future__ import annotations

from typing import Final

DEFAULT_PORT: Final = "6789"

COMMANDS: Final[dict[str, str]] = {
    r"python3 -m venv": "installs from the network; .ci/run does the README's",
    r"\. \.venv/bin/activate": "for the shell that goes on",
    r"(\S*/)?pip install": "installs from the network",
    r"\.venv/bin/pytest": "the tests themselves",
    r"\.venv/bin/python benchmarks/million\.py": "an hour; tests/test_benchmarks.py has it smaller",
    r"\.venv/bin/python benchmarks/field\.py": "twenty minutes of a machine at rest",
    r"\.venv/bin/python benchmarks/growth\.py": "half an hour of a machine at rest",
    r"\.venv/bin/python benchmarks/stalls\.py": "forty seconds; tests/test_benchmarks.py",
    r"scripts/": "checks of the project; .ci/run does them",
    r"PYTHONPATH=tests ": "rewrites the pages that are tested here",
    r"cp examples/": "writes to /etc; tests/nbnet/test_systemd.py verifies the units",
    r"systemctl |journalctl ": "needs a system's systemd",
    r"loadgen chaos": "sixteen seconds; tests/loadgen/test_commands_chaos.py",
    r"loadgen capacity": "a minute or more; tests/loadgen/test_commands_capacity.py",
    r"loadgen compare --a-command": "a minute or more; tests/loadgen/test_commands_compare.py",
    r"loadgen --cluster|dask ": "needs hosts; tests/loadgen/test_cluster_dask.py",
    r"for host in|ssh |done$": "needs hosts",
    r"nbnet serve --host 10\.": "needs hosts; tests/nbnet/test_behind_haproxy.py",
    r"admin": "needs HAProxy; tests/nbnet/test_behind_haproxy.py",
    r"ip |tc |loadgen --target 10\.": "needs root and netem; tests/loadgen/test_network.py",
    r"gh attestation": "needs a release",
}
"""Beginnings of commands (regular expressions) that are not run, and why."""

LONG: Final[dict[str, str]] = {
    r"loadgen --repeat": "ten runs",
    r"loadgen compare before": "compares these",
}
"""Beginnings of commands that are run by ``pytest -m slow`` only, and why."""

BLOCKS: Final[dict[tuple[str, str], str]] = {
    ("docs/behind-haproxy.md", "global"): "tests/nbnet/test_behind_haproxy.py runs it",
    (
        "docs/conformance.md",
        '{ name = "plus", why = "a sign; int() takes it", send = "+0003abc", end = "closed" },',
    ): "two lines of nbnet/cases, inside of an array",
    (
        "docs/explanation/loader-or-server.md",
        "LOADER-BOUND: its worker used 98 % of a core; half of the replies waited 46.3 ms",
    ): "an excerpt of what a run printed",
    ("docs/tutorial.md", "thresholds  fails if       measured"): "an excerpt of what a run printed",
    ("docs/how-to/client.md", "NbclientError"): "a drawing; tests/nbclient/test_errors.py",
    ("docs/how-to/kubernetes.md", "FROM python:3.13-slim"): "needs Docker",
    (
        "docs/many-machines.md",
        (
            "loadgen: host 10.0.0.12: 100000 connections are more than the limit "
            "of open files allows here: at most 19968 (ulimit -Hn), or several --workers"
        ),
    ): "an excerpt of what a run printed",
    (
        "docs/many-machines.md",
        "host 10.91.2.2: nothing heard for 896 ms",
    ): "an excerpt of what a run printed",
}
"""Page and first line of blocks with which nothing is done, and why."""

_LOAD: Final = r"^(loadgen(?! (?:compare|capacity|chaos)\b)\b.*?)"

INSTEAD: Final[list[tuple[str, str]]] = [
    # Less of it, so that it takes little time and machines that are slow pass as well.
    (_LOAD + r"--duration \w+", r"\1--duration 300ms"),
    (_LOAD + r"--warmup \w+", r"\1--warmup 100ms"),
    (_LOAD + r"--rate \w+", r"\1--rate 500"),
    (_LOAD + r"--stages \S+", r"\1--stages 100ms:500,200ms:1k"),
    (_LOAD + r"--requests \w+", r"\1--requests 1k"),
    (_LOAD + r"--conns 5000", r"\1--conns 100"),
    (_LOAD + r"'p99>\d+ms'", r"\1'p99>60s'"),
    (_LOAD + r"'rate<99%'", r"\1'rate<1%'"),
    (
        r"^(loadgen(?! (?:compare|capacity|chaos)\b)(?!.*--(?:duration|stages|requests) ).*)$",
        r"\1 --duration 300ms",
    ),
    (r"^(nbclient ping\b.*?)--interval \w+", r"\1--interval 1ms"),
    # Not installed everywhere.
    (
        r"^curl -s (\S+)$",
        r"""python -c 'import urllib.request as w; print(w.urlopen("\1").read().decode())'""",
    ),
]
"""What is replaced in commands before they are run."""
