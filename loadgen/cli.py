"""The command ``loadgen``: its options, what they mean together, and what it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loadgen.commands import TAKES_LOADS, check_connected, check_outputs, refusals
from loadgen.commands import compare as _compare
from loadgen.commands.capacity import capacity
from loadgen.commands.chaos import chaos
from loadgen.plan import (
    ClusterPlan,
    Plan,
    TlsPlan,
    parse_rate,
    parse_scheduler,
    parse_stages,
)
from loadgen.report import Run, files, outputs
from loadgen.report import json as json_report
from loadgen.report.terminal import SHOWN, parse_percentiles, summary
from loadgen.running import Site, run
from loadgen.thresholds import NAMES, OPERATORS, parse_threshold
from loadgen.traffic import Traffic, parse_sizes, read_payloads
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
from nbnet.notation import Address, parse_address, parse_count, parse_duration

UNBOUNDED = 24 * 3600.0
"""Seconds that a run with --requests and no --duration may take."""

_LOAD = "The load"
_TRAFFIC = "What is sent, and what has to come back"
_LIMITS = "Connections and limits"
_FAILING = "When a run fails"
_TLS = "TLS"
_CLUSTER = "Many machines (extra: distributed)"
_REPORTS = "Reports"

_OF_A_RUN = (
    *("json", "html", "csv", "hgrm", "hlog", "percentiles", "quiet", "metrics", "repeat"),
    *("fail_if", "abort_on_fail"),
)
"""Parameters that say nothing of a load: what is told of a run, and when it fails."""

app = make_app(subcommand_metavar="[COMMAND]")


class Arrivals(StrEnum):
    """How the requests of an open loop are spread."""

    constant = "constant"
    poisson = "poisson"


def main() -> None:
    """Run the command; the console script."""
    run_command(app, "loadgen")


@app.callback(invoke_without_command=True)
def loadgen(
    ctx: typer.Context,
    conns: Annotated[
        str,
        typer.Option(
            "--conns", "--connections", "-c", metavar="N", help="Connections to hold: 5000, 5k."
        ),
    ] = "50",
    duration: Annotated[
        str | None,
        typer.Option(
            "--duration",
            "-d",
            metavar="TIME",
            show_default="10s",
            help="How long to measure: 500ms, 30s, 1m30s. With --requests alone, until all are "
            "answered.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="TARGET",
            help="The server: HOST:PORT, [IPv6]:PORT, tls://HOST:PORT or unix:PATH. "
            "Without it, the bundled one is started.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate",
            "-r",
            metavar="N",
            help="Requests a second, of all connections together: 500, 50k. They are sent when "
            "they are due, and their latency counts from then. Without it, each connection sends "
            "its next request when the reply has come.",
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            "--workers",
            "-w",
            metavar="N|auto",
            help="Processes that send; auto takes the cores that are free.",
        ),
    ] = "1",
    json: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the figures as JSON; - is standard output."
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            "--html",
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write a page with charts, to be opened in a browser.",
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            rich_help_panel=_REPORTS,
            help="Print nothing but the last line, and errors.",
        ),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="HOST:PORT",
            rich_help_panel=_REPORTS,
            help="Serve live figures for Prometheus there while the run goes on.",
        ),
    ] = None,
    repeat: Annotated[
        str | None,
        typer.Option(
            "--repeat",
            metavar="N",
            rich_help_panel=_REPORTS,
            help="Do it all so many times, and show how much the runs differ.",
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals | None,
        typer.Option(
            "--arrivals",
            show_default="constant",
            rich_help_panel=_LOAD,
            help="With --rate or --stages: evenly spread, or random as of many independent users.",
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            "--stages",
            metavar="TIME:RATE,...",
            rich_help_panel=_LOAD,
            help="Change the rate in straight lines: 10s:10k,30s:50k goes from --rate, or 0, to "
            "10k in 10 s and on to 50k in 30 s. They are the duration.",
        ),
    ] = None,
    warmup: Annotated[
        str,
        typer.Option(
            "--warmup",
            metavar="TIME",
            rich_help_panel=_LOAD,
            help="Send for so long before measuring.",
        ),
    ] = "0s",
    requests: Annotated[
        str | None,
        typer.Option(
            "--requests",
            "-n",
            metavar="N",
            rich_help_panel=_LOAD,
            help="Send so many at most, then end.",
        ),
    ] = None,
    think: Annotated[
        str,
        typer.Option(
            "--think",
            metavar="TIME",
            rich_help_panel=_LOAD,
            help="In a closed loop (without --rate), wait so long after each reply.",
        ),
    ] = "0s",
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            metavar="N",
            rich_help_panel=_LOAD,
            help="Requests in flight on a connection, at most.",
        ),
    ] = "1",
    active: Annotated[
        str | None,
        typer.Option(
            "--active",
            metavar="N",
            show_default="all",
            rich_help_panel=_LOAD,
            help="Connections that send; the others are held idle.",
        ),
    ] = None,
    requests_per_conn: Annotated[
        str | None,
        typer.Option(
            "--requests-per-conn",
            metavar="N",
            rich_help_panel=_LOAD,
            help="Close a connection after so many replies, and make a new one.",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            rich_help_panel=_LOAD,
            help="Of all that is random: the same seed, the same load.",
        ),
    ] = 1,
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload",
            metavar="TEXT",
            show_default="abc",
            rich_help_panel=_TRAFFIC,
            help="What each request carries.",
        ),
    ] = None,
    payload_size: Annotated[
        str | None,
        typer.Option(
            "--payload-size",
            metavar="SIZE",
            rich_help_panel=_TRAFFIC,
            help="Random text of so many bytes: 512, 16-1KiB, lognormal:MEDIAN,SIGMA.",
        ),
    ] = None,
    payload_file: Annotated[
        str | None,
        typer.Option(
            "--payload-file",
            metavar="FILE",
            rich_help_panel=_TRAFFIC,
            help="One payload a line, in turn; frames:FILE for a file of frames.",
        ),
    ] = None,
    payload_unique: Annotated[
        bool,
        typer.Option(
            "--payload-unique",
            rich_help_panel=_TRAFFIC,
            help="Put a number of its own into each payload: without, all may be equal, and a "
            "reply to another request goes unnoticed.",
        ),
    ] = False,
    expect: Annotated[
        str,
        typer.Option(
            "--expect",
            metavar="WHAT",
            rich_help_panel=_TRAFFIC,
            help="reverse, echo, none (any well-formed reply), or module:function.",
        ),
    ] = "reverse",
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            metavar="TIME",
            rich_help_panel=_LIMITS,
            help="How long a reply may take before its connection is given up.",
        ),
    ] = "10s",
    grace: Annotated[
        str,
        typer.Option(
            "--grace",
            metavar="TIME",
            rich_help_panel=_LIMITS,
            help="How long to wait for replies after the last request was sent.",
        ),
    ] = "2s",
    connect_rate: Annotated[
        str | None,
        typer.Option(
            "--connect-rate",
            metavar="N",
            rich_help_panel=_LIMITS,
            help="Connections begun a second, at most; without it, as fast as they are made.",
        ),
    ] = None,
    connect_timeout: Annotated[
        str,
        typer.Option(
            "--connect-timeout",
            metavar="TIME",
            rich_help_panel=_LIMITS,
            help="How long making all connections may take, beyond what --connect-rate needs.",
        ),
    ] = "10s",
    reconnect: Annotated[
        bool,
        typer.Option(
            "--reconnect/--no-reconnect",
            rich_help_panel=_LIMITS,
            help="Replace connections that fail.",
        ),
    ] = True,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="ADDRESS",
            rich_help_panel=_LIMITS,
            help="Connect from this address of this machine; repeat it to use several in turn. "
            "On loopback 127.0.0.0/8 is used when one is not enough.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if",
            metavar="EXPR",
            rich_help_panel=_FAILING,
            # Nothing like <this>, which would be shown as a placeholder.
            help="Fail the run, with exit code 3, if this holds: 'p99>5ms', 'errors>0.1%'; may be "
            f"repeated. Operators: {' '.join(OPERATORS)}. Metrics: {NAMES}.",
        ),
    ] = None,
    abort_on_fail: Annotated[
        bool,
        typer.Option(
            "--abort-on-fail",
            rich_help_panel=_FAILING,
            help="End the run as soon as one of --fail-if has come true for good, or clearly "
            "after a second.",
        ),
    ] = False,
    tls_ca: Annotated[
        str | None,
        typer.Option(
            "--tls-ca",
            metavar="FILE",
            rich_help_panel=_TLS,
            help="Who may sign the server's certificate, instead of the system's.",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None,
        typer.Option(
            "--tls-cert",
            metavar="FILE",
            rich_help_panel=_TLS,
            help="The certificate to show to the server.",
        ),
    ] = None,
    tls_key: Annotated[
        str | None,
        typer.Option(
            "--tls-key",
            metavar="FILE",
            rich_help_panel=_TLS,
            help="Its private key, if it stands in a file of its own.",
        ),
    ] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            "--tls-server-name",
            metavar="NAME",
            rich_help_panel=_TLS,
            help="The name in the server's certificate, if it is not the host's.",
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="ADDRESS",
            rich_help_panel=_CLUSTER,
            help="Run on the hosts of a Dask cluster, --workers on each: its scheduler, "
            "tcp://HOST:8786 or tls://HOST:8786.",
        ),
    ] = None,
    cluster_hosts: Annotated[
        str | None,
        typer.Option(
            "--cluster-hosts",
            metavar="N",
            show_default="all there are",
            rich_help_panel=_CLUSTER,
            help="Use so many hosts, and wait for them.",
        ),
    ] = None,
    cluster_timeout: Annotated[
        str,
        typer.Option(
            "--cluster-timeout",
            metavar="TIME",
            rich_help_panel=_CLUSTER,
            help="How long the scheduler or a host may take for anything beyond the run itself.",
        ),
    ] = "10s",
    cluster_keep_going: Annotated[
        bool,
        typer.Option(
            "--cluster-keep-going",
            rich_help_panel=_CLUSTER,
            help="Go on with the other hosts when one is lost; without, the run ends early.",
        ),
    ] = False,
    cluster_ca: Annotated[
        str | None,
        typer.Option(
            "--cluster-ca",
            metavar="FILE",
            rich_help_panel=_CLUSTER,
            help="Who may sign the certificates of the cluster.",
        ),
    ] = None,
    cluster_cert: Annotated[
        str | None,
        typer.Option(
            "--cluster-cert",
            metavar="FILE",
            rich_help_panel=_CLUSTER,
            help="The certificate to show to the scheduler.",
        ),
    ] = None,
    cluster_key: Annotated[
        str | None,
        typer.Option(
            "--cluster-key",
            metavar="FILE",
            rich_help_panel=_CLUSTER,
            help="Its private key, if it stands in a file of its own.",
        ),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write the figures of each second as CSV.",
        ),
    ] = None,
    hgrm: Annotated[
        str | None,
        typer.Option(
            "--hgrm",
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write the percentiles of the latency in ms, for HdrHistogram's plotter.",
        ),
    ] = None,
    hlog: Annotated[
        str | None,
        typer.Option(
            "--hlog",
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write a histogram of each second, for HdrHistogram's log tools.",
        ),
    ] = None,
    percentiles: Annotated[
        str | None,
        typer.Option(
            "--percentiles",
            metavar="P,...",
            show_default="50,90,99,99.9,99.99",
            rich_help_panel=_REPORTS,
            help="Percentiles in the summary; those of --json are always there, and these too.",
        ),
    ] = None,
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
        traffic = _traffic(payload, payload_size, payload_file, payload_unique, expect)
        count = optional("--requests", parse_count, requests)
        steps = optional("--stages", parse_stages, stages) or ()
        if arrivals is not None and rate is None and stages is None:
            raise CommandError("--arrivals: needs --rate or --stages", EXIT_USAGE)
        plan = Plan(
            connections=parsed("--conns", parse_count, conns),
            duration=_duration(duration, steps, count),
            rate=optional("--rate", parse_rate, rate),
            stages=steps,
            poisson=arrivals is Arrivals.poisson,
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
            workers=None if workers == "auto" else parsed("--workers", _parse_workers, workers),
            sources=tuple(source or ()),
            # On a cluster its files are of the hosts, which look for them.
            tls=_tls(server, tls_ca, tls_cert, tls_key, tls_server_name, here=cluster is None),
            cluster=_cluster(
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


def _duration(
    text: str | None, stages: tuple[tuple[float, float], ...], requests: int | None
) -> float:
    """What is asked, else what the stages take; a number of requests alone is no time."""
    if text is not None:
        return parsed("--duration", parse_duration, text)
    if stages:
        return sum(seconds for seconds, _ in stages)
    return 10.0 if requests is None else UNBOUNDED


def _parse_workers(text: str) -> int:
    try:
        count = parse_count(text)
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError(f"{text!r} is no number of workers: expected 1, 2 ... or auto")
    return count


def _traffic(
    text: str | None, size: str | None, file: str | None, unique: bool, expect: str
) -> Traffic:
    given = [
        option
        for option, value in (
            ("--payload", text),
            ("--payload-size", size),
            ("--payload-file", file),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise CommandError(f"{given[0]} and {given[1]}: give one of them", EXIT_USAGE)
    return Traffic(
        payload=os.fsencode(text) if text is not None else b"abc",
        sizes=optional("--payload-size", parse_sizes, size),
        payloads=() if file is None else _read_payloads(file),
        unique=unique,
        expect=expect,
    )


def _read_payloads(file: str) -> tuple[bytes, ...]:
    path = file.removeprefix("frames:")
    try:
        return read_payloads(Path(path).read_bytes(), frames=path != file)
    except OSError as error:
        raise CommandError(f"--payload-file: {path}: {error.strerror}", EXIT_USAGE) from error
    except ValueError as error:
        raise CommandError(f"--payload-file: {path}: {error}", EXIT_USAGE) from error


def _tls(
    target: Address | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    server_name: str | None,
    *,
    here: bool,
) -> TlsPlan | None:
    if target is None or not target.tls:
        if ca or cert or key or server_name:
            raise CommandError("--tls-...: needs a target tls://HOST:PORT", EXIT_USAGE)
        return None
    if key and not cert:
        raise CommandError("--tls-key: needs --tls-cert", EXIT_USAGE)
    if here:
        from nbnet.tls import client_context  # takes its time, and most do without

        try:
            client_context(ca, cert, key)
        except ValueError as error:
            raise CommandError(str(error), EXIT_USAGE) from error
    return TlsPlan(server_name=server_name or target.host, authority=ca, certificate=cert, key=key)


def _cluster(
    target: Address | None,
    scheduler: str | None,
    *,
    hosts: int | None,
    patience: float,
    keep_going: bool,
    files: tuple[str | None, str | None, str | None],
) -> ClusterPlan | None:
    if scheduler is None:
        if hosts is not None or keep_going or any(files):
            raise CommandError("--cluster-...: needs --cluster tcp://HOST:PORT", EXIT_USAGE)
        return None
    if target is None:
        raise CommandError(
            "--cluster: needs --target, a server that all hosts reach "
            "(start one with: nbnet serve --host 0.0.0.0)",
            EXIT_USAGE,
        )
    if target.path:
        raise CommandError(
            f"--target {target}: a unix socket is of one machine, not of a --cluster", EXIT_USAGE
        )
    if hosts == 0:
        raise CommandError("--cluster-hosts 0: at least 1 is needed", EXIT_USAGE)
    if not patience > 0:
        raise CommandError("--cluster-timeout: more than 0 is needed", EXIT_USAGE)
    authority, certificate, key = files
    if any(files) and not scheduler.startswith("tls://"):
        raise CommandError(
            "--cluster-ca, --cluster-cert, --cluster-key: need --cluster tls://HOST:PORT",
            EXIT_USAGE,
        )
    return ClusterPlan(
        scheduler=scheduler,
        authority=authority,
        certificate=certificate,
        key=key,
        hosts=hosts,
        patience=patience,
        keep_going=keep_going,
    )


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
