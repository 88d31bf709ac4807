from __future__ import annotations

import inspect
import pickle

import pytest

import nbclient
from nbclient import errors

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling(kind: type[errors.NbclientError]) -> None:
    error = kind("what happened to 127.0.0.1:6789")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "what happened to 127.0.0.1:6789"
    assert copy.args == error.args


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_public_drawn_and_under_the_base(kind: type[errors.NbclientError]) -> None:
    assert issubclass(kind, errors.NbclientError)
    assert getattr(nbclient, kind.__name__) is kind
    assert kind.__name__ in nbclient.__all__
    assert kind.__name__ in (errors.__doc__ or "")


def test_a_timeout_is_also_the_builtin_one() -> None:
    with pytest.raises(TimeoutError):
        raise nbclient.RequestTimeout("too late")
