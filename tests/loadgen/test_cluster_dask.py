"""Runs on real clusters of Dask: a scheduler and workers in processes of their own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from loadgen import agent
from loadgen.cluster import Cluster
from loadgen.commands import load_of
from loadgen.plan import ClusterPlan, Plan
from loadgen.report import json as json_report
from loadgen.running import run
from loadgen.tally import Counts, Phase, Snapshot

from .clusters import HOSTS, DaskCluster, starting
from .command import PATIENCE, Ended, call, running
from .processes import is_gone, wait_until
from .schema import assert_all_verified, assert_valid
from .servers import Peer, serving

LAST = HOSTS[1]


def answers(peer: Peer) -> None:
    for payload in peer.requests():
        peer.reply(payload)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with starting(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture
def cluster(dask: DaskCluster) -> DaskCluster:
    """Two hosts; those that a test killed are replaced."""
    missing = [host for host in HOSTS if host not in dask.workers]
    for host in missing:
        dask.add(host)
    for host in missing:
        dask.wait(host)
    return dask


@pytest.fixture
def options(cluster: DaskCluster, address: tuple[str, int]) -> list[str]:
    return ["--cluster", cluster.scheduler, "--target", f"{address[0]}:{address[1]}"]


def pids_on(cluster: DaskCluster) -> list[int]:
    """The processes of a run on all hosts, once all are there."""
    wait_until(lambda: all(len(cluster.engines(host)) == 2 for host in HOSTS), seconds=PATIENCE)
    return [pid for host in HOSTS for pid in cluster.engines(host)]


def test_two_hosts_of_two_workers_add_up_to_what_the_server_answered(
    cluster: DaskCluster, tmp_path: Path
) -> None:
    file = tmp_path / "run.json"
    with serving(answers) as service:
        done = call(
            *("--cluster", cluster.scheduler, "--target", str(service.address)),
            *("--workers", "2", "--conns", "10", "--requests", "200"),
            *("--payload-unique", "--payload", "abcdefgh", "--json", str(file)),
            # Each host takes those of these addresses that are its own.
            *("--source", "127.0.0.9", "--source", "192.0.2.1"),
        )
        assert done.code == 0, done.err
        wait_until(lambda: service.is_idle)
        answered = service.did["reply"]
    document = json.loads(file.read_text())
    assert_valid(document)
    assert_all_verified(document, 10)
    hosts = document["hosts"]
    assert [host["host"] for host in hosts] == list(HOSTS)
    assert [host["workers"] for host in hosts] == [2, 2]
    assert [host["held"] for host in hosts] == [6, 4]
    assert document["requests"]["planned"] == 200
    assert sum(host["requests"] for host in hosts) == answered == 200
    assert document["latency_seconds"]["count"] == 200
    assert document["latency_seconds"]["max"] == max(host["max"] for host in hosts)
    assert all(host["lost"] is None for host in hosts)
    # One machine has one clock.
    for host in hosts:
        assert abs(host["clock_offset_seconds"]) <= host["start_within_seconds"]
    assert "2 hosts, 4 workers: 127.0.0.2, 127.0.0.3; clocks compared to within " in done.err
    assert "\n  127.0.0.3        2     4 " in done.out


def test_a_check_runs_on_the_host_where_it_applies(options: list[str]) -> None:
    done = call(*options, "--source", "192.0.2.1")
    assert done.code == 2
    assert re.search(
        r"\nloadgen: host 127\.0\.0\.[23]: --source 192\.0\.2\.1: none of them is an address of "
        r"this host\n$",
        done.err,
    )


def test_ctrl_c_ends_the_run_on_all_hosts(cluster: DaskCluster, options: list[str]) -> None:
    with running(*options, "--duration", "10m", "--quiet") as process:
        pids = pids_on(cluster)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert out.startswith("INTERRUPTED: every reply so far verified")
    assert len(pids) == 4
    assert all(is_gone(pid) for pid in pids), "when it ends, nothing of it is left"


def kills(cluster: DaskCluster, phase: Phase) -> tuple[Callable[[Snapshot], None], list[float]]:
    """Kills the last host when a phase is heard of; when that was, and when it is known."""
    times: list[float] = []

    def act(snapshot: Snapshot) -> None:
        if snapshot.phase is phase and not times:
            cluster.remove(LAST)
            times.append(time.monotonic())

    return act, times


@pytest.mark.parametrize(
    ("phase", "keep_going"),
    [
        (Phase.MEASURING, False),
        pytest.param(Phase.MEASURING, True, marks=pytest.mark.slow),
        # All wait for the one that is just being told to go on.
        pytest.param(Phase.READY, True, marks=pytest.mark.slow),
    ],
)
def test_a_killed_worker_is_noticed_soon_and_the_verdict_says_what_is_missing(
    cluster: DaskCluster,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    phase: Phase,
    keep_going: bool,
) -> None:
    act, times = kills(cluster, phase)
    lose = Cluster._lose

    def losing(self: Cluster, *arguments: Any) -> None:
        times.append(time.monotonic())
        pids.append(pids_of_first())
        lose(self, *arguments)

    def pids_of_first() -> list[int]:
        return cluster.engines(HOSTS[0])

    pids: list[list[int]] = []
    monkeypatch.setattr(Cluster, "_lose", losing)
    site = replace(
        load_of(options)[1],
        cluster=ClusterPlan(scheduler=cluster.scheduler, keep_going=keep_going),
    )
    plan = Plan(connections=10, duration=2.0 if keep_going else 600.0)
    finished = run(plan, site, lambda finished: finished, on_snapshot=act)
    killed, noticed = times
    assert noticed - killed < 5.0  # after which it would be lost for its silence
    assert finished.verdict.exit_code == 1
    assert finished.verdict.text.startswith("FAILED: host 127.0.0.3 was lost ")
    assert finished.verdict.text.endswith("every other reply verified")
    assert finished.tally.elapsed == 2.0 if keep_going else finished.tally.elapsed < 60.0
    one, other = finished.hosts
    assert one.lost is None
    assert other.lost is not None
    assert other.lost.endswith("its Dask worker ended")
    # What the lost host told before counts, and nothing else.
    both = Counts()
    both.add(one.counts)
    both.add(other.counts)
    assert finished.tally.counts.latency == both.latency
    assert finished.tally.counts.verified == both.verified > 0
    document = json_report.document(finished)
    assert_valid(document)
    assert [host["lost"] for host in document["hosts"]] == [None, other.lost]
    [engines] = pids
    assert len(engines) == 2
    assert all(is_gone(pid) for pid in engines)


@pytest.mark.slow
def test_another_version_on_a_host_is_refused(
    cluster: DaskCluster, options: list[str], tmp_path: Path
) -> None:
    preload = tmp_path / "older.py"
    preload.write_text("import loadgen.agent\nloadgen.agent.__version__ = '0.0.9'\n")
    cluster.add("127.0.0.4", "--preload", str(preload))
    cluster.wait("127.0.0.4")
    done = call(*options)
    cluster.remove("127.0.0.4")
    assert done.code == 2
    assert done.line.startswith("loadgen: host 127.0.0.4 has loadgen 0.0.9 and this machine ")
    assert done.line.endswith(": all need the same")


@pytest.mark.slow
def test_a_host_that_stands_still_is_said_within_a_second_and_lost_after_five(
    cluster: DaskCluster, options: list[str]
) -> None:
    with running(*options, "--duration", "10m") as process:
        assert process.stderr is not None
        pids = pids_on(cluster)
        wait_until(lambda: all(len(cluster.engines(host)) == 2 for host in HOSTS))
        process.stderr.readline()
        stopped = time.monotonic()
        cluster.workers[LAST].send_signal(signal.SIGSTOP)
        line = process.stderr.readline()
        noticed = time.monotonic() - stopped
        assert line.startswith("host 127.0.0.3: nothing heard for ")
        # A tenth for the looks, and what a busy machine takes.
        assert noticed < 1.5
        while "was lost" not in (line := process.stderr.readline()):
            assert line
        lost = time.monotonic() - stopped
        out, _ = process.communicate(timeout=PATIENCE)
    assert 4.5 < lost < 8.0
    assert process.returncode == 1
    assert "(nothing was heard of it for 5 s)" in " ".join(out.split())
    # It hears that it is to end when it goes on.
    cluster.workers[LAST].send_signal(signal.SIGCONT)
    wait_until(lambda: all(is_gone(pid) for pid in pids))


@pytest.mark.slow
def test_when_the_controller_is_killed_its_agents_end_by_themselves(
    cluster: DaskCluster, options: list[str]
) -> None:
    with running(*options, "--duration", "10m", "--quiet") as process:
        pids = pids_on(cluster)
        process.kill()
    wait_until(lambda: all(is_gone(pid) for pid in pids), seconds=agent.LEASE + 10)
    assert call(*options, "--duration", "100ms", "--quiet").code == 0, "and the hosts are free"


@pytest.mark.slow
def test_two_runs_at_a_time_do_not_share_a_host(cluster: DaskCluster, options: list[str]) -> None:
    with running(*options, "--duration", "10m", "--quiet") as process:
        pids_on(cluster)
        done = call(*options)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert done.code == 2
    assert done.err.endswith("host 127.0.0.2: another run is going on there\n")
    assert process.returncode == 130


@pytest.mark.slow
def test_two_workers_on_a_host_are_one_host(cluster: DaskCluster, options: list[str]) -> None:
    cluster.add("127.0.0.2", "--name", "second", name="second")
    cluster.wait("second")
    done = call(*options, "--duration", "100ms")
    cluster.remove("second")
    assert done.code == 0, done.err
    assert done.err.startswith("2 hosts, 2 workers: 127.0.0.2, 127.0.0.3;")


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_run(tmp_path: Path, address: tuple[str, int]) -> None:
    with starting(tmp_path) as cluster:
        cluster.add(LAST)
        cluster.wait(LAST)
        target = f"{address[0]}:{address[1]}"
        options = ("--cluster", cluster.scheduler, "--target", target)
        with running(*options, "--duration", "10m", "--quiet") as process:
            wait_until(lambda: len(cluster.engines(LAST)) == 2, seconds=PATIENCE)
            pids = cluster.engines(LAST)
            cluster.remove("scheduler")
            out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode in (1, 4)
        assert "(the scheduler is gone)" in out
        wait_until(lambda: all(is_gone(pid) for pid in pids), seconds=agent.LEASE + 10)


@pytest.mark.slow
def test_all_is_encrypted_and_only_who_has_a_certificate_may_use_the_cluster(
    tmp_path: Path, address: tuple[str, int]
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "cert", "key", "other", "other_key")}
    authority.cert_pem.write_to_path(files["ca"])
    for issuer, cert, key in ((authority, "cert", "key"), (stranger, "other", "other_key")):
        issued = issuer.issue_cert("loadgen.example")
        issued.cert_chain_pems[0].write_to_path(files[cert])
        issued.private_key_pem.write_to_path(files[key])
    security = [
        *("--protocol", "tls", "--tls-ca-file", str(files["ca"])),
        *("--tls-cert", str(files["cert"]), "--tls-key", str(files["key"])),
    ]
    with starting(tmp_path, *security) as cluster:
        cluster.add(LAST)
        cluster.wait(LAST)
        assert cluster.scheduler.startswith("tls://127.0.0.1:")
        where = ("--target", f"{address[0]}:{address[1]}", "--duration", "100ms")

        def attempt(scheduler: str, *options: str) -> Ended:
            return call("--cluster", scheduler, *where, "--cluster-timeout", "4s", *options)

        ours = ("--cluster-ca", str(files["ca"]))
        done = attempt(
            cluster.scheduler,
            *(*ours, "--cluster-cert", str(files["cert"]), "--cluster-key", str(files["key"])),
        )
        assert done.code == 0, done.err
        refused = attempt(
            cluster.scheduler,
            *(*ours, "--cluster-cert", str(files["other"])),
            *("--cluster-key", str(files["other_key"])),
        )
        assert refused.code == 4
        assert "cannot connect to a Dask scheduler there" in refused.line
        plain = attempt(cluster.scheduler.replace("tls:", "tcp:"))
        assert plain.code == 4
        assert "cannot connect to a Dask scheduler there" in plain.line


# Without a cluster -----------------------------------------------------------


def test_a_scheduler_that_is_not_there_is_a_line(refusing: tuple[str, int]) -> None:
    done = call(
        *("--cluster", f"{refusing[0]}:{refusing[1]}", "--target", "127.0.0.1:1"),
        *("--cluster-timeout", "300ms"),
    )
    assert done.code == 4
    assert done.line.startswith(
        f"loadgen: --cluster tcp://{refusing[0]}:{refusing[1]}: cannot connect to a Dask scheduler"
    )


def test_a_peer_that_says_nothing_is_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = call(
            *("--cluster", f"127.0.0.1:{port}", "--target", "127.0.0.1:1"),
            *("--cluster-timeout", "300ms"),
        )
    assert done.code == 4
    assert done.line == (
        f"loadgen: --cluster tcp://127.0.0.1:{port}: cannot connect to a Dask scheduler there: "
        "no answer in time (start one with: dask scheduler)"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("everywhere", "words"),
    [
        (True, "host 127.0.0.3 has no loadgen.agent: install the same version of nbnet there"),
        (False, "the scheduler has no or another nbnet: it needs the same version as all"),
    ],
)
def test_where_nbnet_is_missing_is_said(
    tmp_path: Path, address: tuple[str, int], words: str, *, everywhere: bool
) -> None:
    preload = tmp_path / "none.py"
    preload.write_text("import sys\nsys.modules['loadgen'] = None\n")
    with starting(tmp_path, "--preload", str(preload)) as cluster:
        if not everywhere:
            cluster._options.clear()
        cluster.add(LAST)
        cluster.wait(LAST)
        target = f"{address[0]}:{address[1]}"
        done = call("--cluster", cluster.scheduler, "--target", target, "--duration", "100ms")
    assert done.code in (1, 2, 4)
    assert words in done.err


def test_without_dask_it_is_said_what_to_install() -> None:
    program = (
        "import sys; sys.modules['distributed'] = None; import loadgen.cli; loadgen.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--cluster", "a:1", "--target", "b:1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "loadgen: --cluster: needs Dask (pip install 'nbnet[distributed]')\n"


def test_a_run_without_a_cluster_loads_nothing_of_it() -> None:
    program = (
        "import sys, loadgen.cli; found = {'distributed', 'dask', 'asyncio', 'loadgen.cluster', "
        "'loadgen.agent', 'loadgen.dask_link'} & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "a:1"], "--cluster: needs --target, a server that all hosts reach"),
        (["--cluster", "foo"], "--cluster: 'foo' is no address of a scheduler"),
        (["--cluster", "a:1", "--target", "unix:/x"], "a unix socket is of one machine"),
        (["--cluster-hosts", "2"], "--cluster-...: needs --cluster"),
        (["--cluster", "a:1", "--target", "b:1", "--cluster-hosts", "0"], "at least 1 is needed"),
        (["--cluster", "a:1", "--target", "b:1", "--cluster-timeout", "0"], "more than 0"),
        (["--cluster", "a:1", "--target", "b:1", "--cluster-ca", "x"], "need --cluster tls://"),
        (["--cluster", "tls://a:1", "--target", "b:1"], "needs --cluster-ca and --cluster-cert"),
        (
            ["--cluster", "tls://a:1", "--target", "b:1", "--cluster-ca", "/no/such/file",
             "--cluster-cert", "/no/such/file"],
            "--cluster-ca, --cluster-cert, --cluster-key: ",
        ),
        (["chaos", "--cluster", "a:1", "--target", "b:1"], "--cluster: chaos runs on one machine"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_line(arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert done.code == 2
    assert words in done.line
