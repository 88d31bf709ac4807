"""Whether a page that is not true is noticed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from manual.pages import blocks_of
from manual.running import Running

REFUSED = """
```console
$ nbclient send --target 127.0.0.1:4321 a
nbclient: cannot connect to 127.0.0.1:4321: Connection refused (to start a server: nbnet serve)
$ echo $?
3
```
"""
SERVED = """
In `up.py`:

```python
handle = bytes.upper
```

```console
$ nbnet serve --port 7000 --handler up:handle
listening on 127.0.0.1:7000
$ nbclient send --target 127.0.0.1:7000 a
A
```
"""


def done(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with contextlib.ExitStack() as stack:
        running = Running(place, stack)
        for block in blocks_of("a.md", page):
            running.do(block, lambda text: text.startswith("rm "))


@pytest.mark.parametrize(
    "page",
    [
        '```console\n$ nbclient send "abc"\ncba\n```',
        "```sh\necho one\n```",
        "```console\n$ rm --recursive /\n```",
        REFUSED,
        SERVED,
        "In `a.toml`:\n\n```toml\nmax-frame = 3\n```",
        '```python\nsum([1])  # 1\nsum([1])  # the sum\n```\n\n```json\n{"a": 1}\n```',
        "```python\ndef test_one():\n    assert True\n```",
        "```yaml\nimage: a\ncommand: [nbnet, serve, --workers, '2']\n```",
        "```ini\n[Service]\nA=1\nA=2\n```",
    ],
)
def test_what_is_true(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(page, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ('```console\n$ nbclient send "abc"\nabc\n```', "a.md:2: nbclient send"),
        ("```console\n$ nbclient send --target 127.0.0.1:4321 a\nb\n```", "cannot connect"),
        ("```sh\nfalse\n```", "exited with 1"),
        ("```console\n$ nbclient send a\na\n$ echo $?\n1\n```", "it exited with 0"),
        ("```console\n$ rm a | nbclient send --no-such\n```", "nbclient has no --no-such"),
        ("```console\n$ loadgen chaos --slo 'p99<1s'\n```", "loadgen has no --slo"),
        ("```console\n$ nbnet serve\nlistening, maybe\n```", "listening on"),
        ("```sh\npython benchmarks/stalls.py --no-such\n```", "has no --no-such"),
        ("```yaml\nimage: a\ncommand: [nbnet, serve, --no-such]\n```", "nbnet has no --no-such"),
        ("```yaml\nrun: nbnet serve --no-such &\n```", "nbnet has no --no-such"),
        ("```python\nsum([1])  # 2\n```", "the page shows 2, but it is 1"),
        ("```python\ndef test_one():\n    assert False\n```", "1 failed"),
        ("In `a.toml`:\n\n```toml\nmax-frames = 3\n```", "max-frames"),
        ("```unknown\n```", "nothing is done with a block of 'unknown'"),
        ("```\nno language\n```", "nothing is done with a block of ''"),
        ("```console\nno command\n```", "a.md:2: a block begins with what no command printed"),
    ],
)
def test_what_is_not(
    page: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((AssertionError, ValueError), match=fault):
        done(page, tmp_path, monkeypatch)


def test_nothing_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside.toml"
    place = tmp_path / "place"
    place.mkdir()
    done(f"In `{outside}`:\n\n```toml\na = 1\n```", place, monkeypatch)
    assert not outside.exists()
    with pytest.raises(AssertionError, match="leads out of the page's directory"):
        done("In `../outside.toml`:\n\n```toml\na = 1\n```", place, monkeypatch)
    assert not outside.exists()
