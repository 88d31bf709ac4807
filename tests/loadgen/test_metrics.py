"""What Prometheus is told of a run while it goes on."""

from __future__ import annotations

import builtins
import socket
import threading
from collections.abc import Callable
from dataclasses import fields
from itertools import count
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from loadgen.metrics import BUCKETS, RunCollector, served_metrics
from loadgen.plan import Plan
from loadgen.tally import Counts, Phase, Snapshot, Tally
from nbnet.command import EXIT_USAGE, CommandError

from .runs import MS, recorded

PLAN = Plan(connections=10, duration=30.0)


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def told(tally: Tally, plan: Plan = PLAN) -> dict[str, float]:
    collector = RunCollector(plan)
    collector.publish(tally)
    return samples(generate_latest(collector).decode())


def tally_of(counts: Counts, phase: Phase = Phase.MEASURING) -> Tally:
    tally = Tally()
    tally.add(Snapshot(phase=phase, elapsed=1.0, counts=counts))
    return tally


# What is told ----------------------------------------------------------------


def test_every_count_of_requests_and_connections_is_told() -> None:
    numbers = count(101)
    counts = Counts()
    wanted = {each.name: next(numbers) for each in fields(Counts) if each.type == "int"}
    for name, number in wanted.items():
        setattr(counts, name, number)
    found = told(tally_of(counts))
    for name in set(wanted) - {"on_time", "sent_bytes", "received_bytes"}:
        assert wanted[name] in found.values(), name
    assert found["loadgen_requests_sent_total"] == counts.sent
    assert found["loadgen_replies_verified_total"] == counts.verified
    assert found["loadgen_connections"] == 10


def test_errors_are_told_by_kind() -> None:
    counts = Counts()
    counts.errors.update({"EOF": 3, "connect: refused": 1})
    found = told(tally_of(counts))
    assert found["loadgen_errors_total{kind=EOF}"] == 3
    assert found["loadgen_errors_total{kind=connect: refused}"] == 1


@pytest.mark.parametrize("phase", Phase)
def test_the_phase_is_the_one_that_is_1(phase: Phase) -> None:
    found = told(tally_of(Counts(), phase))
    assert [name for name, value in found.items() if "phase" in name and value] == [
        f"loadgen_phase{{phase={phase.value}}}"
    ]


def test_the_time_is_told_with_what_it_is_to_be_if_that_was_asked() -> None:
    found = told(tally_of(Counts()))
    assert (found["loadgen_elapsed_seconds"], found["loadgen_duration_seconds"]) == (1.0, 30.0)
    assert "loadgen_duration_seconds" not in told(Tally(), Plan(requests=5))


def test_the_rate_is_that_of_the_last_full_second() -> None:
    tally = tally_of(Counts(verified=40, on_time=40))
    assert told(tally)["loadgen_requests_per_second"] == 40
    more = Counts(verified=900, on_time=900)
    tally.add(Snapshot(phase=Phase.MEASURING, elapsed=1.25, second=1, counts=more))
    assert told(tally)["loadgen_requests_per_second"] == 40
    tally.add(Snapshot(phase=Phase.MEASURING, elapsed=2.25, second=2, counts=Counts()))
    assert told(tally)["loadgen_requests_per_second"] == 900


def test_latencies_are_a_histogram_whose_bounds_hold_what_equals_them() -> None:
    latencies = [round(bound * 1e9) for bound in BUCKETS]
    found = told(tally_of(Counts(latency=recorded(*latencies, 11_000 * MS, 12_000 * MS))))
    buckets = [
        found[f"loadgen_latency_seconds_bucket{{le={bound}}}"] for bound in [*BUCKETS, "+Inf"]
    ]
    assert buckets == [*range(1, len(BUCKETS) + 1), len(BUCKETS) + 2]
    assert found["loadgen_latency_seconds_count"] == len(BUCKETS) + 2
    assert found["loadgen_latency_seconds_sum"] == pytest.approx(sum(BUCKETS) + 23, rel=1e-3)


def test_only_an_open_loop_has_times_since_the_send() -> None:
    counts = Counts(latency=recorded(2 * MS), service=recorded(MS))
    found = told(tally_of(counts), Plan(rate=10.0))
    assert found["loadgen_service_seconds_sum"] == pytest.approx(0.001, rel=1e-3)
    assert "loadgen_service_seconds_sum" not in told(tally_of(Counts(latency=recorded(MS))))


def test_quantiles_are_of_the_run_and_of_the_last_second() -> None:
    assert not [name for name in told(Tally()) if "quantile" in name]
    tally = tally_of(Counts(latency=recorded(*[MS] * 99, 5 * MS)))
    more = Counts(latency=recorded(*[3 * MS] * 100))
    tally.add(Snapshot(phase=Phase.MEASURING, elapsed=2.0, second=1, counts=more))
    found = told(tally)

    def quantile(window: str, of: float) -> float:
        name = "loadgen_latency_quantile_seconds"
        return found[f"{name}{{quantile={of},window={window}}}"]

    assert quantile("run", 0.9) == pytest.approx(0.003, rel=1e-3)
    assert quantile("run", 0.999) == pytest.approx(0.005, rel=1e-3)
    assert quantile("second", 0.5) == pytest.approx(0.001, rel=1e-3)
    assert quantile("second", 0.99) == pytest.approx(0.001, rel=1e-3)


def test_what_was_published_does_not_change_with_the_tally() -> None:
    collector, tally = RunCollector(Plan(rate=1.0)), tally_of(Counts(sent=1, latency=recorded(MS)))
    collector.publish(tally)
    before = generate_latest(collector)
    counts = Counts(sent=9, latency=recorded(MS), service=recorded(MS))
    counts.errors["EOF"] = 1
    tally.add(Snapshot(phase=Phase.DONE, elapsed=9.0, second=1, counts=counts))
    assert generate_latest(collector) == before


def test_it_is_told_in_openmetrics_as_well() -> None:
    collector = RunCollector(PLAN)
    collector.publish(tally_of(Counts(sent=1, latency=recorded(MS))))
    text = generate_openmetrics(collector)  # type: ignore[no-untyped-call]  # it has no types
    assert text.endswith(b"# EOF\n")


# Where it is served ----------------------------------------------------------


def fetch(line: str) -> dict[str, float]:
    with urlopen(line.rpartition(" ")[2], timeout=20) as answer:
        return samples(answer.read().decode())


def test_figures_are_served_while_the_block_lasts() -> None:
    said: list[str] = []
    with served_metrics("127.0.0.1:0", PLAN, announce=said.append) as publish:
        [line] = said
        assert line.startswith("metrics on http://127.0.0.1:")
        assert fetch(line)["loadgen_phase{phase=connecting}"] == 1
        publish(tally_of(Counts(sent=7)))
        assert fetch(line)["loadgen_requests_sent_total"] == 7
    with pytest.raises(OSError, match="refused"):
        fetch(line)
    assert not [each for each in threading.enumerate() if "metrics" in each.name]


def test_copies_are_made_four_times_a_second_and_of_the_end() -> None:
    said: list[str] = []
    now = 0.0
    with served_metrics("127.0.0.1:0", PLAN, announce=said.append, clock=lambda: now) as publish:
        for number in range(1, 9):
            now += 0.125
            publish(tally_of(Counts(sent=number)))
        assert fetch(said[0])["loadgen_requests_sent_total"] == 7
        publish(tally_of(Counts(sent=10), Phase.DONE))
        assert fetch(said[0])["loadgen_requests_sent_total"] == 10


def test_an_address_that_was_given_is_not_told_again() -> None:
    said: list[str] = []
    with socket.socket() as holder:  # keeps the port from others, and does not listen itself
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        with served_metrics(f"127.0.0.1:{port}", PLAN, announce=said.append):
            assert fetch(f"http://127.0.0.1:{port}/metrics")
    assert said == []


def refused(place: str) -> CommandError:
    with pytest.raises(CommandError) as caught, served_metrics(place, PLAN):
        pass
    assert caught.value.code == EXIT_USAGE
    return caught.value


def test_a_place_that_is_none_is_refused_in_a_line() -> None:
    assert refused("9100").message == (
        "--metrics: '9100' is no place to serve: expected HOST:PORT or [IPv6]:PORT"
    )


def test_a_place_that_is_taken_is_refused_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(f"127.0.0.1:{port}").message == (
            f"--metrics: cannot serve metrics on 127.0.0.1:{port}: Address already in use"
        )


@pytest.fixture
def without_prometheus(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)


@pytest.mark.usefixtures("without_prometheus")
def test_a_missing_package_is_named_with_what_to_install() -> None:
    assert refused("127.0.0.1:0").message == (
        "--metrics: metrics need prometheus-client: pip install 'nbnet[metrics]'"
    )
