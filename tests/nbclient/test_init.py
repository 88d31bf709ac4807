from __future__ import annotations

import subprocess
import sys

import pytest

import nbclient


def _loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running this."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_front_that_is_not_used() -> None:
    loaded = _loaded_after("import nbclient; nbclient.Client")
    assert "nbclient.sync" in loaded
    assert loaded.isdisjoint({"nbclient.trio", "trio", "typer", "rich", "asyncio"})


def test_the_async_client_is_loaded_when_it_is_asked_for() -> None:
    loaded = _loaded_after("from nbclient import AsyncClient")
    assert "trio" in loaded


def test_all_that_is_announced_is_there() -> None:
    for name in nbclient.__all__:
        assert getattr(nbclient, name).__name__ == name


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="'nbclient' has no attribute 'Sync'"):
        _ = nbclient.Sync  # type: ignore[attr-defined]
