"""What ``import nbclient`` brings, and what it leaves for later."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import nbclient

SLOW = {"trio", "typer", "rich", "ssl", "asyncio", "nbclient.trio"}
"""Modules that take their time."""


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running this."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    ["import nbclient", "import nbclient\nwith nbclient.Client(('localhost', 1)): pass"],
    ids=["import", "use"],
)
def test_a_program_without_trio_and_tls_loads_neither(code: str) -> None:
    loaded = loaded_after(code)
    assert "nbclient.sync" in loaded
    assert not loaded & SLOW


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from nbclient import AsyncClient", "trio"),
        ("import nbclient; nbclient.Client('tls://localhost:1').close()", "ssl"),
    ],
)
def test_what_was_left_is_loaded_when_it_is_used(code: str, module: str) -> None:
    assert module in loaded_after(code)


@pytest.mark.parametrize("name", nbclient.__all__)
def test_what_is_announced_is_there_and_explained(name: str) -> None:
    thing = getattr(nbclient, name)
    assert thing.__name__ == name
    assert len(inspect.getdoc(thing) or "") > 20
    assert inspect.getdoc(thing) != inspect.getdoc(thing.__base__)


def test_all_that_is_public_is_announced_once() -> None:
    assert len(nbclient.__all__) == len(set(nbclient.__all__))
    defined = {
        name
        for name, thing in vars(nbclient).items()
        if inspect.isclass(thing) and thing.__module__.startswith("nbclient")
    }
    assert defined | {"AsyncClient"} == set(nbclient.__all__)


def test_all_of_it_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from nbclient import *", names)
    assert set(nbclient.__all__) <= set(names)


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="'nbclient' has no attribute 'Sync'"):
        _ = nbclient.Sync  # type: ignore[attr-defined]
