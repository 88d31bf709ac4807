"""The tree of errors, and that nothing of one is lost between processes."""

from __future__ import annotations

import copy
import copyreg
import inspect
import pickle
from typing import Any

import pytest

import nbclient
from nbclient import errors
from nbclient.errors import NbclientError

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, NbclientError)
]

TREE = {
    "ConnectError": "NbclientError",
    "RequestTimeout": "NbclientError",
    "ConnectTimeout": "RequestTimeout",
    "PoolTimeout": "RequestTimeout",
    "ProtocolError": "NbclientError",
    "LocalProtocolError": "ProtocolError",
    "RemoteProtocolError": "ProtocolError",
    "ConnectionLost": "NbclientError",
    "ClosedError": "NbclientError",
}

ways_to_copy = pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy]
    + [
        lambda error, version=version: pickle.loads(pickle.dumps(error, version))
        for version in range(pickle.HIGHEST_PROTOCOL + 1)
    ],
    ids=["copy", "deepcopy", *(f"pickle {v}" for v in range(pickle.HIGHEST_PROTOCOL + 1))],
)


def full(kind: type[NbclientError]) -> NbclientError:
    """An error of a kind with nothing left as it is by default."""
    more: dict[str, Any] = {}
    if kind is nbclient.ConnectError:
        more["reasons"] = {"a:1": "Connection refused", "b:2": "No route to host"}
    return kind(
        "what happened to 127.0.0.1:6789",
        peer="127.0.0.1:6789",
        stage="sending",
        maybe_executed=True,
        **more,
    )


def test_the_tree_is_as_drawn() -> None:
    assert {kind.__name__: kind.__bases__[0].__name__ for kind in ALL} == {
        "NbclientError": "Exception",
        **TREE,
    }


def test_the_drawing_is_the_tree() -> None:
    drawing = (errors.__doc__ or "").split("::")[1].split("Rules")[0]
    at = {line.split("-- ")[1].split()[0]: line.index("+") for line in drawing.splitlines()[3:-1]}
    assert set(at) == set(TREE)
    for name, column in at.items():
        assert column == (5 if TREE[name] == "NbclientError" else 10), name


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_public(kind: type[NbclientError]) -> None:
    assert getattr(nbclient, kind.__name__) is kind
    assert kind.__name__ in nbclient.__all__


@pytest.mark.parametrize("kind", [k for k in ALL if issubclass(k, nbclient.RequestTimeout)])
def test_a_timeout_is_also_the_builtin_one(kind: type[NbclientError]) -> None:
    with pytest.raises(TimeoutError, match="too late") as caught:
        raise kind("too late")
    # What the operating system calls a timeout has a number.
    assert caught.value.errno is None


def test_an_unfit_payload_is_also_a_value_error() -> None:
    assert issubclass(nbclient.LocalProtocolError, ValueError)


@pytest.mark.parametrize("kind", ALL)
def test_little_is_known_by_default(kind: type[NbclientError]) -> None:
    error = kind()
    assert str(error) == ""
    assert (error.peer, error.maybe_executed) == ("", False)
    assert error.stage == ("connecting" if kind is nbclient.ConnectError else "")


def test_reasons_are_one_s_own() -> None:
    nbclient.ConnectError().reasons["a:1"] = "Connection refused"
    assert nbclient.ConnectError().reasons == {}


@pytest.mark.parametrize("kind", ALL)
@ways_to_copy
def test_a_copy_has_all_that_the_error_has(kind: type[NbclientError], duplicate: Any) -> None:
    error = full(kind)
    error.add_note("in the third attempt")
    other = duplicate(error)
    assert other is not error
    assert type(other) is kind
    assert str(other) == str(error) == "what happened to 127.0.0.1:6789"
    assert other.args == error.args
    assert vars(other) == vars(error)
    if kind is nbclient.ConnectError:
        assert list(vars(other)["reasons"]) == ["a:1", "b:2"]
    assert vars(other).keys() >= {"peer", "stage", "maybe_executed", "__notes__"}


@pytest.mark.parametrize("kind", ALL)
def test_a_shallow_copy_can_be_changed_alone(kind: type[NbclientError]) -> None:
    error = full(kind)
    other = copy.copy(error)
    other.peer, other.stage, other.maybe_executed = "", "receiving", False
    assert (error.peer, error.stage, error.maybe_executed) == ("127.0.0.1:6789", "sending", True)


def _share(kind: type[NbclientError], attributes: dict[str, Any]) -> NbclientError:
    made = kind.__new__(kind)
    made.__dict__ = attributes
    return made


@pytest.mark.parametrize("kind", ALL)
def test_copies_do_not_depend_on_how_errors_are_pickled(
    kind: type[NbclientError], monkeypatch: pytest.MonkeyPatch
) -> None:
    # tblib does so, which comes with Dask: fine for pickles, but copies share their attributes.
    reducer = lambda error: (_share, (kind, error.__dict__))  # noqa: E731
    monkeypatch.setitem(copyreg.dispatch_table, kind, reducer)
    error = full(kind)
    other = copy.copy(error)
    assert type(other) is kind
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
    other.peer = ""
    assert error.peer == "127.0.0.1:6789"
