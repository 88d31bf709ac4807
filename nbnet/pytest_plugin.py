"""A pytest plugin: the fixture ``nbnet_server``, a server for one test.

pytest finds it wherever nbnet is installed; nothing has to be imported::

    import pytest

    from nbclient import Client
    from nbnet import Limits


    def test_a_reply(nbnet_server):
        with Client(str(nbnet_server.address)) as client:
            assert client.request(b"abc") == b"cba"


    @pytest.mark.nbnet_server(handler=bytes.upper, limits=Limits(max_frame=3))
    def test_another_server(nbnet_server):
        with Client(str(nbnet_server.address)) as client:
            assert client.request(b"abc") == b"ABC"

The rules:

* every test has a server of its own, which costs it a millisecond. Tests that
  are to share one say so in a fixture of theirs, with ``nbnet.Server``;
* the end of a test waits for nobody: connections that are still open then are
  closed;
* what goes wrong in a handler is logged by the logger ``nbnet``, so pytest shows
  it below a test that fails, and ``caplog`` has it;
* pytest imports this module in every run of everybody who has nbnet installed,
  so it imports the server no sooner than a test asks for one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from nbnet.limits import Limits

if TYPE_CHECKING:
    from nbnet.server import Server


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, also to ``--strict-markers``."""
    config.addinivalue_line(
        "markers",
        "nbnet_server(handler=..., limits=..., **keywords): what the server of the fixture "
        "nbnet_server is made of, as keywords of nbnet.Server",
    )


@pytest.fixture
def nbnet_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running ``nbnet.Server`` that reverses payloads; ended after the test.

    Its ``address`` is a tuple of host and port, the port chosen by the kernel.
    The marker ``nbnet_server`` takes the keywords of ``nbnet.Server`` to make
    another one; where a test, its class and its module are marked, their keywords
    are put together, and the nearest to the test wins.

    Without ``limits`` in a marker they are the default ones but for ``drain``,
    which is 0: ``stop`` sends the replies that are ready and waits for no others.

    A marker with positional arguments or with a keyword that ``nbnet.Server`` does
    not have is an error of the test; a value that it does not take raises what
    ``nbnet.Server`` raises.
    """
    from nbnet.server import Server

    keywords: dict[str, Any] = {"port": 0, "limits": Limits(drain=0)}
    for mark in reversed(list(request.node.iter_markers("nbnet_server"))):
        keywords.update(_keywords(mark, inspect.signature(Server)))
    with Server(**keywords) as server:
        yield server


def _keywords(mark: pytest.Mark, signature: inspect.Signature) -> dict[str, Any]:
    """The keywords of a marker; ends the test if they are none of the server's."""
    if mark.args:
        # A sole function would never get here: pytest takes it for what is marked.
        pytest.fail("the marker nbnet_server takes keywords only: handler=...", pytrace=False)
    if unknown := mark.kwargs.keys() - signature.parameters.keys():
        pytest.fail(
            f"the marker nbnet_server has no keyword {', '.join(sorted(unknown))}: "
            f"expected some of {', '.join(signature.parameters)}",
            pytrace=False,
        )
    return dict(mark.kwargs)
