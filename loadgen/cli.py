"""The command ``loadgen``: what it does with its options, and what it prints.

The options themselves stand in ``loadgen.options``; other commands have theirs in
``loadgen.commands``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from loadgen import options
from loadgen.asked import cluster_of, duration_of, parse_workers, tls_of, traffic_of
from loadgen.commands import TAKES_LOADS, check_connected, check_outputs, refusals
from loadgen.commands import compare as _compare
from loadgen.commands.capacity import capacity
from loadgen.commands.chaos import chaos
from loadgen.plan import Plan, parse_rate, parse_scheduler, parse_stages
from loadgen.report import Run, files, outputs
from loadgen.report import json as json_report
from loadgen.report.terminal import SHOWN, parse_percentiles, summary
from loadgen.running import Site, run
from loadgen.thresholds import parse_threshold
from nbnet.command import (
    EXIT_FAILED,
    EXIT_USAGE,
    CommandError,
    make_app,
    optional,
    parsed,
    version_option,
)
from nbnet.command import run as run_command
from nbnet.notation import parse_address, parse_count, parse_duration

_OF_A_RUN = (
    *("json", "html", "csv", "hgrm", "hlog", "percentiles", "quiet", "metrics", "repeat"),
    *("fail_if", "abort_on_fail"),
)
"""Parameters that say nothing of a load: what is told of a run, and when it fails."""

app = make_app(subcommand_metavar="[COMMAND]")


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "loadgen")


@app.callback(invoke_without_command=True)
def loadgen(
    ctx: typer.Context,
    conns: options.Conns = "50",
    duration: options.Duration = None,
    target: options.Target = None,
    rate: options.Rate = None,
    workers: options.Workers = "1",
    json: options.Json = None,
    html: options.Html = None,
    quiet: options.Quiet = False,
    metrics: options.Metrics = None,
    repeat: options.Repeat = None,
    arrivals: options.Arrivals = None,
    stages: options.Stages = None,
    warmup: options.Warmup = "0s",
    requests: options.Requests = None,
    think: options.Think = "0s",
    pipeline: options.Pipeline = "1",
    active: options.Active = None,
    requests_per_conn: options.RequestsPerConn = None,
    seed: options.Seed = 1,
    payload: options.Payload = None,
    payload_size: options.PayloadSize = None,
    payload_file: options.PayloadFile = None,
    payload_unique: options.PayloadUnique = False,
    expect: options.Expect = "reverse",
    timeout: options.Timeout = "10s",
    grace: options.Grace = "2s",
    connect_rate: options.ConnectRate = None,
    connect_timeout: options.ConnectTimeout = "10s",
    reconnect: options.Reconnect = True,
    source: options.Source = None,
    fail_if: options.FailIf = None,
    abort_on_fail: options.AbortOnFail = False,
    tls_ca: options.TlsCa = None,
    tls_cert: options.TlsCert = None,
    tls_key: options.TlsKey = None,
    tls_server_name: options.TlsServerName = None,
    cluster: options.Cluster = None,
    cluster_hosts: options.ClusterHosts = None,
    cluster_timeout: options.ClusterTimeout = "10s",
    cluster_keep_going: options.ClusterKeepGoing = False,
    cluster_ca: options.ClusterCa = None,
    cluster_cert: options.ClusterCert = None,
    cluster_key: options.ClusterKey = None,
    csv: options.Csv = None,
    hgrm: options.Hgrm = None,
    hlog: options.Hlog = None,
    percentiles: options.Percentiles = None,
    _version: Annotated[bool, version_option("loadgen")] = False,
) -> None:
    """Load a server of framed messages, verify every reply, report latency and throughput.

    Each reply is compared byte for byte with what has to come back: by default
    the payload backwards, as the bundled server answers.

    Exit codes: 0 all replies right; 1 wrong replies, failed requests or lost
    connections, if no --fail-if speaks of them; 2 usage, or more than this
    machine can do; 3 a --fail-if came true; 4 no connection; 130 interrupted
    (the report is printed).

    Examples:

    loadgen --conns 5000 --duration 30s

    loadgen --target 10.0.0.7:6789 --rate 20k --arrivals poisson --payload-unique

    loadgen --cluster tcp://10.0.0.1:8786 --target 10.0.0.7:6789 --workers auto --conns 20k
    """
    if ctx.invoked_subcommand is not None:
        _check_order(ctx, ctx.invoked_subcommand)
        return
    with refusals():
        traffic = traffic_of(payload, payload_size, payload_file, payload_unique, expect)
        count = optional("--requests", parse_count, requests)
        steps = optional("--stages", parse_stages, stages) or ()
        if arrivals is not None and rate is None and stages is None:
            raise CommandError("--arrivals: needs --rate or --stages", EXIT_USAGE)
        plan = Plan(
            connections=parsed("--conns", parse_count, conns),
            duration=duration_of(duration, steps, count),
            rate=optional("--rate", parse_rate, rate),
            stages=steps,
            poisson=arrivals is options.Arrival.poisson,
            requests=count,
            think=parsed("--think", parse_duration, think),
            pipeline=parsed("--pipeline", parse_count, pipeline),
            active=optional("--active", parse_count, active),
            requests_per_connection=optional("--requests-per-conn", parse_count, requests_per_conn),
            reconnect=reconnect,
            traffic=traffic,
            warmup=parsed("--warmup", parse_duration, warmup),
            connect_rate=optional("--connect-rate", parse_rate, connect_rate),
            connect_timeout=parsed("--connect-timeout", parse_duration, connect_timeout),
            timeout=parsed("--timeout", parse_duration, timeout),
            grace=parsed("--grace", parse_duration, grace),
            seed=seed,
        )
        server = optional("--target", parse_address, target)
        site = Site(
            target=server,
            workers=None if workers == "auto" else parsed("--workers", parse_workers, workers),
            sources=tuple(source or ()),
            # On a cluster its files are of the hosts, which look for them.
            tls=tls_of(server, tls_ca, tls_cert, tls_key, tls_server_name, here=cluster is None),
            cluster=cluster_of(
                server,
                optional("--cluster", parse_scheduler, cluster),
                hosts=optional("--cluster-hosts", parse_count, cluster_hosts),
                patience=parsed("--cluster-timeout", parse_duration, cluster_timeout),
                keep_going=cluster_keep_going,
                files=(cluster_ca, cluster_cert, cluster_key),
            ),
        )
        times = optional("--repeat", parse_count, repeat)
        if times == 0:
            raise CommandError("--repeat 0: at least 1 is needed", EXIT_USAGE)
        if ctx.obj is not None:
            # A command that is about a load has it described, and carries it out itself.
            for name in _OF_A_RUN:
                if _is_given(ctx, name):
                    raise CommandError(
                        f"{_option(name)}: of a single run, which this command is not", EXIT_USAGE
                    )
            ctx.obj(plan, site)
            return
        thresholds = [parsed("--fail-if", parse_threshold, text) for text in fail_if or ()]
        if abort_on_fail and not thresholds:
            raise CommandError("--abort-on-fail: needs --fail-if", EXIT_USAGE)
        shown = optional("--percentiles", parse_percentiles, percentiles)
        named = {"--json": json, "--html": html, "--csv": csv, "--hgrm": hgrm, "--hlog": hlog}
        chosen = {option: path for option, path in named.items() if path is not None}
        check_outputs(chosen)
        if times is not None:
            if len(chosen) > (json is not None) or thresholds or metrics is not None:
                raise CommandError(
                    "--repeat: of the reports only --json, and no --fail-if or --metrics",
                    EXIT_USAGE,
                )
            from loadgen.commands.repeat import repeat as run_repeatedly

            raise typer.Exit(run_repeatedly(plan, site, times, json))
        code = run(
            plan,
            site,
            lambda finished: _report(finished, chosen, shown, quiet=quiet),
            thresholds=thresholds,
            abort_on_fail=abort_on_fail,
            observers=[] if json is None else [json_report.Checkpoint(json, shown or ())],
            keep_histograms=hlog is not None,
            quiet=quiet,
            metrics=metrics,
        )
    raise typer.Exit(code)


def _check_order(ctx: typer.Context, command: str) -> None:
    """Refuse what would be silently left out: options before a command, or a second command."""
    if ctx.obj is not None:
        raise CommandError(f"{command}: name one command", EXIT_USAGE)
    for name in ctx.params:
        if _is_given(ctx, name):
            raise CommandError(
                f"{_option(name)}: options come after the name of a command, "
                f"as in loadgen {command} --conns 100",
                EXIT_USAGE,
            )


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _option(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"


def _report(
    finished: Run,
    chosen: Mapping[str, str],
    percentiles: Sequence[float] | None,
    *,
    quiet: bool,
) -> int:
    """Print and save what a run came to; give the exit code."""
    # The files come first: a reader of the summary who leaves early must not cost
    # them. Nor must a full disk cost the summary.
    unsaved = outputs.save(finished, chosen, percentiles or ())
    check_connected(finished)
    # Standard output belongs to the file that is asked for there.
    stream = sys.stderr if files.STDOUT in chosen.values() else sys.stdout
    text = finished.verdict.text if quiet else summary(finished, percentiles or SHOWN)
    print(text, file=stream, flush=True)
    if unsaved:
        raise CommandError("; ".join(unsaved), EXIT_FAILED)
    return finished.verdict.exit_code


app.command("capacity", context_settings=TAKES_LOADS)(capacity)
app.command("chaos", context_settings=TAKES_LOADS)(chaos)
app.command("compare", **_compare.SETTINGS)(_compare.compare)
