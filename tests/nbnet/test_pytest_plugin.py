"""The pytest plugin, in runs of pytest of its own.

Those runs load no plugin by its entry point: whether nbnet is installed with it
or not, they have this one once.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
import threading

import pytest

from nbnet import pytest_plugin

pytest_plugins = ["pytester"]

HEAD = """
    import socket
    import pytest
    from nbnet import Limits

    def ask(server, request):
        with socket.create_connection(server.address, timeout=10) as peer:
            peer.sendall(request)
            peer.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: peer.recv(4096), b""))
"""


@pytest.fixture(autouse=True)
def no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """Run tests with the plugin; no server may be left over."""
    pytester.makepyfile(inspect.cleandoc(HEAD) + "\n\n" + inspect.cleandoc(tests))
    before = set(threading.enumerate())
    result = pytester.runpytest_inprocess("-p", "nbnet.pytest_plugin", "--strict-markers", *options)
    assert set(threading.enumerate()) <= before
    return result


def test_the_example_in_its_documentation(pytester: pytest.Pytester) -> None:
    assert pytest_plugin.__doc__ is not None
    example = re.search(r"::\n\n((?:    .*\n|\n)+)", pytest_plugin.__doc__)
    assert example is not None
    run(pytester, "\n" + example[1]).assert_outcomes(passed=2)


def test_it_reverses_and_ends_with_the_test(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        before = []

        def test_it_reverses(nbnet_server):
            assert isinstance(nbnet_server.address, tuple)
            host, port = nbnet_server.address
            assert host == "127.0.0.1" and port not in (0, 6789)
            before.append(socket.create_connection((host, port), timeout=10))
            before[0].sendall(b"00003abc")
            assert before[0].recv(100) == b"00003cba"

        def test_the_next_has_another(nbnet_server):
            assert before[0].recv(100) == b""
            before[0].close()
            assert ask(nbnet_server, b"00003abc") == b"00003cba"

        def test_a_test_may_stop_it(nbnet_server):
            nbnet_server.stop()
            with pytest.raises(ConnectionRefusedError):
                ask(nbnet_server, b"00003abc")
        """,
    ).assert_outcomes(passed=3)


def test_a_connection_left_open_does_not_delay_the_end(pytester: pytest.Pytester) -> None:
    """A server that drains waits 10 s for the rest of a request."""
    result = run(
        pytester,
        """
        peers = []

        def test_leaves_half_a_request(nbnet_server):
            peers.append(socket.create_connection(nbnet_server.address, timeout=10))
            peers[0].sendall(b"00003abc" b"00003a")
            assert peers[0].recv(100) == b"00003cba"

        def test_is_next():
            assert peers[0].recv(100) == b""
            peers[0].close()
        """,
    )
    result.assert_outcomes(passed=2)
    assert result.duration < 8


def test_a_marker_says_what_it_is_made_of(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        @pytest.mark.nbnet_server(handler=bytes.upper)
        def test_handler(nbnet_server):
            assert ask(nbnet_server, b"00003abc") == b"00003ABC"

        @pytest.mark.nbnet_server(handler="operator:neg", threads=1, poller="poll")
        def test_loaded_handler(nbnet_server):
            assert ask(nbnet_server, b"00003abc") == b""

        @pytest.mark.nbnet_server(limits=Limits(max_frame=2))
        def test_limits(nbnet_server):
            assert ask(nbnet_server, b"00002ab00003abc") == b"00002ba"

        @pytest.mark.nbnet_server(host="127.0.0.2")
        def test_host(nbnet_server):
            assert nbnet_server.address[0] == "127.0.0.2"

        @pytest.mark.parametrize(
            "reply",
            [
                b"00002ba",
                pytest.param(b"00002AB", marks=pytest.mark.nbnet_server(handler=bytes.upper)),
            ],
        )
        def test_a_parameter_marked(nbnet_server, reply):
            assert ask(nbnet_server, b"00002ab") == reply
        """,
    ).assert_outcomes(passed=6)


def test_the_nearest_marker_wins_keyword_by_keyword(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        """
        pytestmark = pytest.mark.nbnet_server(handler=bytes.upper)

        @pytest.mark.nbnet_server(limits=Limits(max_frame=2))
        class TestAll:
            def test_all_together(self, nbnet_server):
                assert ask(nbnet_server, b"00002ab00003abc") == b"00002AB"

            @pytest.mark.nbnet_server(handler=bytes.title)
            def test_the_nearest(self, nbnet_server):
                assert ask(nbnet_server, b"00002ab00003abc") == b"00002Ab"
        """,
    ).assert_outcomes(passed=2)


def test_a_marker_that_is_wrong_is_an_error_that_says_so(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        @pytest.mark.nbnet_server(handlr=bytes.upper, ports=1)
        def test_unknown(nbnet_server):
            pass

        @pytest.mark.nbnet_server(bytes.upper, "127.0.0.1")
        def test_positional(nbnet_server):
            pass

        @pytest.mark.nbnet_server(poller="kqueue")
        def test_value(nbnet_server):
            pass
        """,
        "-ra",
    )
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines(
        [
            "the marker nbnet_server has no keyword handlr, ports: expected some of handler, *",
            "the marker nbnet_server takes keywords only*",
            "E *ValueError: 'kqueue' is no poller*",
        ]
    )


def test_errors_of_the_handler_are_seen(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def broken(payload):
            raise LookupError("no answer to this")

        @pytest.mark.nbnet_server(handler=broken)
        def test_caplog(nbnet_server, caplog):
            assert ask(nbnet_server, b"00003abc") == b""
            [record] = caplog.records
            assert record.name == "nbnet" and record.exc_info[0] is LookupError

        @pytest.mark.nbnet_server(handler=broken)
        def test_report(nbnet_server):
            assert ask(nbnet_server, b"00003abc") == b"00003cba"
        """,
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Captured log call*", "ERROR *the handler failed: no answer *"])


def test_the_marker_is_explained(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("-p", "nbnet.pytest_plugin", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.nbnet_server(handler=*"])


def test_who_does_not_use_it_imports_no_server() -> None:
    """Tests that need no server start no later, and coverage misses none of it."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, nbnet.pytest_plugin; print(*sys.modules)"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    ours = {name for name in loaded if name.startswith("nbnet")}
    assert ours == {"nbnet", "nbnet.framing", "nbnet.limits", "nbnet.pytest_plugin"}


def test_pytest_finds_it_by_its_entry_point() -> None:
    found = importlib.metadata.entry_points(group="pytest11", name="nbnet")
    if not found:
        pytest.skip("nbnet is installed without its entry point")
    assert [point.load() for point in found] == [pytest_plugin]
