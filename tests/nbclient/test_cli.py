"""``nbclient``: what it prints, how it ends, and what it makes of its surroundings."""

from __future__ import annotations

import base64
import errno
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import trustme
from support import forking
from support.commands import run_here
from support.forking import Forked

from nbclient.cli import _advice
from nbclient.errors import ConnectError
from nbclient.stdio import Lines
from nbnet import Certificate, Server
from nbnet.entry import nbclient
from nbnet.notation import Target


def run(
    *arguments: str | bytes,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in this process."""
    return run_here(nbclient, *arguments, stdin=stdin, environment=environment)


def run_apart(*arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, with what the interpreter makes of all this."""
    return subprocess.run(
        [sys.executable, "-m", "nbclient", *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=30,
    )


Run = Callable[..., subprocess.CompletedProcess[bytes]]


def send(
    address: Target, *arguments: str | bytes, stdin: bytes = b"", by: Run = run
) -> tuple[bytes, int, str]:
    """What ``nbclient send`` printed, its exit code, and its stderr."""
    done = by("send", "--target", str(address), *arguments, stdin=stdin)
    return done.stdout, done.returncode, done.stderr.decode()


def sender(address: Target) -> list[str]:
    """What does as ``nbclient send --lines``, whose start is for a good part its options."""
    code = (
        "import sys; from nbclient.cli import send; from nbnet.command import run\n"
        "run(lambda **_: send(lines=True, target=sys.argv[1:]), 'nbclient')"
    )
    return [sys.executable, "-c", code, str(address)]


@contextmanager
def sending(
    address: Target, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """``nbclient send --lines``, started, with pipes to and from it."""
    with subprocess.Popen(
        sender(address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


either_way = pytest.mark.parametrize("by", [run, run_apart], ids=["here", "apart"])


# Replies -------------------------------------------------------------------------


@either_way
def test_a_reply_is_printed_as_it_is(address: Target, by: Run) -> None:
    assert send(address, "abc", by=by) == (b"cba", 0, "")


def test_several_replies_have_a_line_each(address: Target) -> None:
    assert send(address, "abc", "de", "f") == (b"cba\ned\nf\n", 0, "")


def test_arguments_need_not_be_utf8(address: Target) -> None:
    payload = "gr\u00fc\u00df".encode() + b"\xff\xfe"
    assert send(address, payload, by=run_apart) == (payload[::-1], 0, "")


def test_a_payload_may_start_with_a_dash(address: Target) -> None:
    assert send(address, "--", "-x") == (b"x-", 0, "")
    assert send(address, "--", "-5") == (b"5-", 0, "")
    assert send(address, "--", "--", "-t") == (b"--\nt-\n", 0, "")


def test_a_negative_number_is_a_payload(address: Target) -> None:
    assert send(address, "-5") == (b"5-", 0, "")
    assert send(address, "a", "-1.5", "--timeout", "3s", "-12t", "b") == (
        b"a\n5.1-\nt21-\nb\n",
        0,
        "",
    )


def test_a_negative_number_stays_the_value_of_an_option(address: Target) -> None:
    out, code, err = send(address, "abc", "--timeout", "-5")
    assert (out, code) == (b"", 2)
    assert err.startswith("nbclient: --timeout: '-5' is no duration")


@either_way
def test_stdin_is_taken_as_it_is(address: Target, by: Run) -> None:
    payload = bytes(range(256)) + b"\n"
    assert send(address, "-", stdin=payload, by=by) == (payload[::-1], 0, "")


def test_stdin_may_be_one_payload_of_several(address: Target) -> None:
    assert send(address, "ab", "-", stdin=b"cd\n") == (b"ba\n\ndc\n", 0, "")


def test_the_longest_payload(address: Target) -> None:
    payload = b"x" * 99_998 + b"y"
    assert send(address, "-", stdin=payload) == (payload[::-1], 0, "")


def test_a_terminal_gets_a_line(address: Target) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "wb") as terminal:
        subprocess.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc"],
            stdout=terminal,
            check=True,
            timeout=30,
        )
        assert screen.read(100) == b"cba\r\n"


def test_the_target_may_come_from_the_environment(address: Target) -> None:
    done = run("send", "abc", environment={"NBNET_TARGET": str(address)})
    assert (done.stdout, done.returncode) == (b"cba", 0)


def test_there_may_be_several_servers(address: Target, refusing: Target) -> None:
    for order in ([refusing, address], [address, refusing]):
        targets = [text for target in order for text in ("--target", str(target))]
        done = run("send", *targets, "abc", "de")
        assert (done.stdout, done.returncode, done.stderr) == (b"cba\ned\n", 0, b"")
    done = run("send", "abc", environment={"NBNET_TARGET": f"{refusing} {address}"})
    assert (done.stdout, done.returncode) == (b"cba", 0)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server(unix=str(path)):
        done = run("send", "-t", f"unix:{path}", "abc")
    assert (done.stdout, done.returncode, done.stderr) == (b"cba", 0, b"")


# TLS -------------------------------------------------------------------------------


class Pem:
    """What stands in files where TLS is spoken, both ends known to one authority."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        authority.cert_pem.write_to_path(self.ca)
        server = authority.issue_cert("server.test")
        client = authority.issue_cert("client.test")
        self.server = str(directory / "server.pem")
        server.private_key_and_cert_chain_pem.write_to_path(self.server)
        self.cert, self.key = str(directory / "client.pem"), str(directory / "client.key")
        client.cert_chain_pems[0].write_to_path(self.cert)
        client.private_key_pem.write_to_path(self.key)


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    return Pem(tmp_path_factory.mktemp("tls"))


def test_tls(pem: Pem) -> None:
    named = ["--tls-ca", pem.ca, "--tls-server-name", "server.test"]
    with Server(port=0, tls=Certificate(pem.server)) as server:
        # In a process that has not loaded what TLS needs.
        assert send(server.address, *named, "abc", by=run_apart) == (b"cba", 0, "")
        done = run("send", "-t", f"tls://{server.address}", *named, "abc")
        assert (done.stdout, done.returncode) == (b"cba", 0)
        # Signed by nobody whom the system trusts; and of another name.
        for arguments in (["--tls"], ["--tls-ca", pem.ca]):
            out, code, err = send(server.address, *arguments, "abc")
            assert (out, code) == (b"", 3)
            assert "certificate" in err
            assert err.count("\n") == 1


def test_mutual_tls(pem: Pem) -> None:
    named = ["--tls-ca", pem.ca, "--tls-server-name", "server.test"]
    shown = ["--tls-cert", pem.cert, "--tls-key", pem.key]
    with Server(port=0, tls=Certificate(pem.server, client_ca=pem.ca)) as server:
        assert send(server.address, *named, *shown, "abc") == (b"cba", 0, "")
        out, code, err = send(server.address, *named, "abc")
        assert (out, err.count("\n")) == (b"", 1)
        assert "_ssl.c" not in err
        assert code in (1, 3)  # with TLS 1.3 the client learns of it when it reads


# Lines -----------------------------------------------------------------------------


@pytest.mark.parametrize("stdin", [b"abc\nde\n", b"abc\r\nde\r\n", b"abc\nde", b"abc\r\nde\r"])
def test_a_line_is_a_request(address: Target, stdin: bytes) -> None:
    assert send(address, "--lines", stdin=stdin) == (b"cba\ned\n", 0, "")


def test_only_the_end_of_a_line_is_taken_off(address: Target) -> None:
    assert send(address, "--lines", stdin=b" a\rb\r\r\n\xff\0\n") == (b"\rb\ra \n\0\xff\n", 0, "")


def test_one_line_has_a_newline_too(address: Target) -> None:
    assert send(address, "--lines", stdin=b"abc") == (b"cba\n", 0, "")


def test_no_lines(address: Target) -> None:
    assert send(address, "--lines") == (b"", 0, "")


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (b"\n", "is empty"),
        (b"\r\n", "is empty"),
        (b"x" * 100_000 + b"\n", "is longer than 99999 bytes"),
        (b"x" * 300_000, "is longer than 99999 bytes"),
    ],
    ids=["empty", "only CR", "long", "longer than a read"],
)
def test_a_line_that_is_no_request(address: Target, bad: bytes, what: str) -> None:
    out, code, err = send(address, "--lines", stdin=b"ab\ncd\n" + bad + b"ef\n")
    assert (out, code, err) == (b"ba\ndc\n", 2, f"nbclient: line 3 of stdin {what}\n")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_the_longest_line(address: Target, end: bytes) -> None:
    line = b"x" * 99_998 + b"y"
    assert send(address, "--lines", stdin=b"a\n" + line + end) == (
        b"a\n" + line[::-1] + b"\n",
        0,
        "",
    )


def test_many_lines_stay_in_order(address: Target) -> None:
    lines = [b"%d0" % number for number in range(1, 100_000)]
    out, code, err = send(address, "--lines", stdin=b"\n".join(lines))
    assert (code, err) == (0, "")
    assert out.splitlines() == [line[::-1] for line in lines]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_answered_before_the_next_one_comes(address: Target, unbuffered: str) -> None:
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with sending(address, environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for line in (b"abc", b"de", b"f"):
            child.stdin.write(line + b"\n")
            child.stdin.flush()
            assert child.stdout.readline() == line[::-1] + b"\n"
        child.stdin.write(b"rest")
        assert child.communicate(timeout=30) == (b"tser\n", b"")
    assert child.returncode == 0


def test_part_of_a_line_is_not_waited_for() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as other:
        lines = Lines(stdin)
        other.write(b"abc\n")
        assert lines.wait()
        at_hand = lines.at_hand()
        assert next(at_hand) == b"abc"
        other.write(b"d")
        assert list(at_hand) == []
        other.write(b"e\nf")
        assert lines.wait()
        assert list(lines.at_hand()) == [b"de"]
        other.close()
        assert lines.wait()
        assert list(lines.at_hand()) == [b"f"]
        assert not lines.wait()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_replies_are_printed_while_others_are_awaited(
    scripted: Callable[..., Target], gate: threading.Event, unbuffered: str
) -> None:
    address = scripted(
        [
            ("expect", b"00001a00001b00001c"),
            ("send", b"00001A00001B"),
            ("gate", b""),
            ("send", b"00001C"),
            ("eof", b""),
        ]
    )
    environment = {"PYTHONUNBUFFERED": unbuffered}
    with sending(address, environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"a\nb\nc\n")
        child.stdin.flush()
        assert [child.stdout.readline() for _ in range(2)] == [b"A\n", b"B\n"]
        gate.set()
        assert child.communicate(timeout=30) == (b"C\n", b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_many_replies_cost_few_writes(address: Target, unbuffered: str) -> None:
    # What is written at once into a socket of packets is one packet.
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there, tempfile.TemporaryFile() as lines:
        lines.write(b"abc\n" * 2000)
        lines.seek(0)
        here.settimeout(30)
        with subprocess.Popen(
            sender(address),
            stdin=lines,
            stdout=there.fileno(),
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        ) as child:
            there.close()
            try:
                packets = list(iter(lambda: here.recv(1 << 20), b""))
            finally:
                child.kill()
    assert b"".join(packets) == b"cba\n" * 2000
    assert len(packets) < 200


def test_memory_does_not_grow_with_the_input(address: Target) -> None:
    def peak(count: int) -> int:
        with sending(address) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            feeder = threading.Thread(target=_feed, args=(child.stdin, b"x" * 999 + b"\n", count))
            feeder.start()
            received = 0
            while data := os.read(child.stdout.fileno(), 1 << 20):
                received += len(data)
            feeder.join()
            assert received == 1000 * count
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            assert child.returncode == 0
            return usage.ru_maxrss

    assert peak(40_000) < peak(1) + 16_000  # KiB, of which the input has 39,000


def _feed(stdin: IO[bytes], line: bytes, count: int) -> None:
    with stdin:
        for _ in range(count // 100):
            stdin.write(line * 100)
        stdin.write(line * (count % 100))


def test_a_terminal_gets_each_line_at_once(address: Target) -> None:
    leader, follower = pty.openpty()
    tty.setraw(follower)  # or it would echo
    with os.fdopen(leader, "r+b", buffering=0) as screen:
        child = subprocess.Popen(
            sender(address),
            stdin=follower,
            stdout=follower,
        )
        os.close(follower)
        try:
            for line in (b"abc\n", b"de\n"):
                screen.write(line)
                assert screen.read(100) == line[-2::-1] + b"\n"
        finally:
            child.kill()
            child.wait()


# JSON ------------------------------------------------------------------------------


def objects(out: bytes) -> list[dict[str, object]]:
    found = [json.loads(line) for line in out.splitlines()]
    for item in found:
        seconds = item.pop("seconds")
        assert 0 < seconds < 30
    return found


def test_json_has_an_object_for_each_reply(address: Target) -> None:
    out, code, err = send(address, "--json", "abc", b'\xff"', "\n\u2028\x1b")
    assert (code, err) == (0, "")
    assert objects(out) == [
        {"text": "cba", "size": 3},
        {"base64": base64.b64encode(b'"\xff').decode(), "size": 2},
        {"base64": base64.b64encode("\n\u2028\x1b".encode()[::-1]).decode(), "size": 5},
    ]
    assert out.isascii()


def test_json_of_text_is_one_line_of_ascii() -> None:
    with Server(bytes.upper, port=0) as server:
        out, code, _ = send(server.address, "--json", "gr\u00fc\u00df\n\u2028\x1b")
    assert code == 0
    assert out.isascii()
    assert objects(out) == [{"text": "GR\u00fc\u00df\n\u2028\x1b", "size": 11}]


def test_json_of_an_empty_reply() -> None:
    with Server(lambda _payload: b"", port=0) as server:
        out, code, _ = send(server.address, "--json", "abc")
    assert code == 0
    assert objects(out) == [{"text": "", "size": 0}]


def test_json_of_lines(address: Target) -> None:
    out, code, err = send(address, "--json", "--lines", stdin=b"abc\nde\n")
    assert (code, err) == (0, "")
    assert objects(out) == [{"text": "cba", "size": 3}, {"text": "ed", "size": 2}]


# Exit codes ------------------------------------------------------------------------


@either_way
def test_no_server(refusing: Target, by: Run) -> None:
    out, code, err = send(refusing, "abc", by=by)
    assert (out, code) == (b"", 3)
    assert err == (
        f"nbclient: cannot connect to {refusing}: Connection refused"
        " (to start a server: nbnet serve)\n"
    )


def test_a_server_that_is_silent(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc"), ("eof", b"")])
    assert send(address, "--timeout", "100ms", "abc") == (
        b"",
        124,
        f"nbclient: no reply from {address} within 0.1 s\n",
    )


def test_a_server_that_breaks_the_protocol(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc00001d"), ("send", b"00003cbaHTTP"), ("eof", b"")])
    fault = "expected a digit of a length, got b'H' at byte 8"
    assert send(address, "abc", "d") == (
        b"cba\n",
        1,
        f"nbclient: {address} broke the protocol: {fault}\n",
    )


def test_a_server_that_closes(scripted: Callable[..., Target]) -> None:
    address = scripted([("expect", b"00003abc")])
    assert send(address, "abc") == (
        b"",
        1,
        f"nbclient: {address} closed the connection with a reply outstanding\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the payload of a request is empty"),
        (["-"], "the payload of a request is empty"),
        (["-t", "nowhere", "abc"], "'nowhere' is no target: expected HOST:PORT"),
        (["--timeout", "soon", "abc"], "--timeout: 'soon' is no duration"),
        (["--timeout", "0", "abc"], "a timeout of 0.0 is not above 0 seconds"),
        (["--retries", "some", "abc"], "--retries: 'some' is no count"),
        (["--tls-ca", "no-such.pem", "abc"], "no-such.pem: No such file"),
        ([], "nothing to send: give a PAYLOAD, - or --lines"),
        (["--lines", "abc"], "--lines takes its payloads from stdin: no PAYLOAD besides"),
        (["-x"], "no option -x (as a payload: -- -x)"),
        (["abc", "-xt5"], "no option -xt5 (as a payload: -- -xt5)"),
    ],
)
def test_usage_errors_are_one_line(refusing: Target, arguments: list[str], message: str) -> None:
    out, code, err = send(refusing, *arguments)
    assert (out, code) == (b"", 2)
    assert err.startswith(f"nbclient: {message}")
    assert err.count("\n") == 1


def test_a_payload_over_the_limit(refusing: Target) -> None:
    out, code, err = send(refusing, "abc", "-", stdin=b"x" * 200_000)
    assert (out, code) == (b"", 2)
    assert err == ("nbclient: the payload of a request has 100000 bytes: it may have 1 to 99999\n")


@pytest.mark.parametrize("arguments", [[], ["send", "--timout", "3s", "x"], ["abc"]])
def test_usage_errors_of_the_command_line(arguments: list[str]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "by"),
    [
        (["-h"], run_apart),  # which has not loaded what help needs
        (["--help"], run),
        (["send", "-h"], run),
        (["send", "--help"], run),
    ],
)
def test_help(arguments: list[str], by: Run) -> None:
    done = by(*arguments)
    assert done.returncode == 0
    assert b"send" in done.stdout


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("nbclient se", ["send"]),
        ("nbclient p", ["ping"]),
        ("nbclient send --tls-s", ["--tls-server-name"]),
        ("nbclient send -5 -- --re", []),
        ("nbclient ping --ex", ["--expect"]),
    ],
)
def test_a_shell_completes(words: str, completions: list[str]) -> None:
    environment = {
        "_NBCLIENT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = run(environment=environment)
    assert (done.stdout.decode().split(), done.stderr) == (completions, b"")


def test_completion_can_be_shown() -> None:
    # Which shell asks is otherwise found out from the processes above.
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run("--show-completion", "bash", environment=environment)
    assert done.returncode == 0
    assert b"_NBCLIENT_COMPLETE=complete_bash" in done.stdout
    assert done.stdout.rstrip().endswith(b"nbclient")


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(b"nbclient ")


# The surroundings --------------------------------------------------------------------


def test_ctrl_c(scripted: Callable[..., Target]) -> None:
    # The reply to the first request tells that the command waits for the second.
    address = scripted([("expect", b"00003abc00001d"), ("send", b"00003cba"), ("eof", b"")])
    with Forked[bytes](
        [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc", "d"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"cba\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert (out, child.returncode, err) == (b"", 130, b"")


def test_a_broken_pipe_is_quiet(address: Target) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody:
        done = forking.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc", "de"],
            stdout=nobody,
            timeout=30,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(address: Target) -> None:
    with Path("/dev/full").open("wb") as full:
        done = forking.run(
            [sys.executable, "-m", "nbclient", "send", "-t", str(address), "abc"],
            stdout=full,
            timeout=30,
        )
    assert done.returncode == 1
    assert done.stderr == b"nbclient: cannot write a reply: No space left on device\n"


def test_a_request_needs_neither_trio_nor_rich(address: Target) -> None:
    code = (
        "import sys\n"
        "from nbclient.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(*{'trio', 'rich', 'asyncio', 'ssl'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "send", "-t", str(address), "abc"],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (b"cba", b"\n")


@pytest.mark.parametrize(("payload", "closed", "name"), [("abc", 1, "output"), ("-", 0, "input")])
def test_a_standard_stream_that_is_closed_is_one_line(
    address: Target, payload: str, closed: int, name: str
) -> None:
    script = f'exec "$0" -m nbclient send -t {address} {payload} {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], stderr=subprocess.PIPE, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr == f"nbclient: standard {name} is closed\n"


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        (os.strerror(errno.ECONNREFUSED), " (to start a server: nbnet serve)"),
        ("TLS: wrong version number", " (does the server speak TLS?)"),
        ("TLS: tlsv1 alert unknown certificate", " (--tls-cert: the certificate to show)"),
        ("No route to host", ""),
    ],
)
def test_what_to_do_is_said_where_it_is_plain(reason: str, advice: str) -> None:
    assert _advice(ConnectError("no", reasons={"127.0.0.1:1": reason})) == advice


def test_standard_input_that_does_not_wait_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as end:
        lines = Lines(source)
        helper = threading.Timer(0.05, end.write, args=(b"one\ntwo",))
        helper.start()
        assert lines.wait()
        assert next(lines.at_hand()) == b"one"
        helper.join()


def test_where_only_sockets_can_be_looked_at_nothing_is_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def only_sockets(*_: object) -> None:
        raise OSError

    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb"):
        monkeypatch.setattr("select.select", only_sockets)
        assert list(Lines(source).at_hand()) == []
