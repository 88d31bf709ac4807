"""The options of a load and of a run, for the command line of ``loadgen``.

Each is the type of a parameter, which brings its flags and its help along; what
it is without being given stands where it is used. Those of no panel are what a
newcomer needs. Values are texts here; ``loadgen.asked`` and ``loadgen.plan`` tell
what they mean.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import typer

from loadgen.thresholds import NAMES, OPERATORS
from nbnet.command import FLAG

_LOAD: Final = "The load"
_TRAFFIC: Final = "What is sent, and what has to come back"
_LIMITS: Final = "Connections and limits"
_FAILING: Final = "When a run fails"
_TLS: Final = "TLS"
_CLUSTER: Final = "Many machines (extra: distributed)"
_REPORTS: Final = "Reports"


class Arrival(StrEnum):
    """How the requests of an open loop are spread."""

    constant = "constant"
    poisson = "poisson"


Conns = Annotated[
    str,
    typer.Option(
        "--conns", "--connections", "-c", metavar="N", help="Connections to hold: 5000, 5k."
    ),
]
Duration = Annotated[
    str | None,
    typer.Option(
        "--duration",
        "-d",
        metavar="TIME",
        show_default="10s",
        help="How long to measure: 500ms, 30s, 1m30s. With --requests alone, until all are "
        "answered.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="The server: HOST:PORT, [IPv6]:PORT, tls://HOST:PORT or unix:PATH. "
        "Without it, the bundled one is started.",
    ),
]
Rate = Annotated[
    str | None,
    typer.Option(
        "--rate",
        "-r",
        metavar="N",
        help="Requests a second, of all connections together: 500, 50k. They are sent when "
        "they are due, and their latency counts from then. Without it, each connection sends "
        "its next request when the reply has come.",
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        "-w",
        metavar="N|auto",
        help="Processes that send; auto takes the cores that are free.",
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - is standard output."),
]

# The load

Arrivals = Annotated[
    Arrival | None,
    typer.Option(
        "--arrivals",
        show_default="constant",
        rich_help_panel=_LOAD,
        help="With --rate or --stages: evenly spread, or random as of many independent users.",
    ),
]
Stages = Annotated[
    str | None,
    typer.Option(
        "--stages",
        metavar="TIME:RATE,...",
        rich_help_panel=_LOAD,
        help="Change the rate in straight lines: 10s:10k,30s:50k goes from --rate, or 0, to "
        "10k in 10 s and on to 50k in 30 s. They are the duration.",
    ),
]
Warmup = Annotated[
    str,
    typer.Option(
        "--warmup",
        metavar="TIME",
        rich_help_panel=_LOAD,
        help="Send for so long before measuring.",
    ),
]
Requests = Annotated[
    str | None,
    typer.Option(
        "--requests",
        "-n",
        metavar="N",
        rich_help_panel=_LOAD,
        help="Send so many at most, then end.",
    ),
]
Think = Annotated[
    str,
    typer.Option(
        "--think",
        metavar="TIME",
        rich_help_panel=_LOAD,
        help="In a closed loop (without --rate), wait so long after each reply.",
    ),
]
Pipeline = Annotated[
    str,
    typer.Option(
        "--pipeline",
        metavar="N",
        rich_help_panel=_LOAD,
        help="Requests in flight on a connection, at most.",
    ),
]
Active = Annotated[
    str | None,
    typer.Option(
        "--active",
        metavar="N",
        show_default="all",
        rich_help_panel=_LOAD,
        help="Connections that send; the others are held idle.",
    ),
]
RequestsPerConn = Annotated[
    str | None,
    typer.Option(
        "--requests-per-conn",
        metavar="N",
        rich_help_panel=_LOAD,
        help="Close a connection after so many replies, and make a new one.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        rich_help_panel=_LOAD,
        help="Of all that is random: the same seed, the same load.",
    ),
]

# What is sent, and what has to come back

Payload = Annotated[
    str | None,
    typer.Option(
        "--payload",
        metavar="TEXT",
        show_default="abc",
        rich_help_panel=_TRAFFIC,
        help="What each request carries.",
    ),
]
PayloadSize = Annotated[
    str | None,
    typer.Option(
        "--payload-size",
        metavar="SIZE",
        rich_help_panel=_TRAFFIC,
        help="Random text of so many bytes: 512, 16-1KiB, lognormal:MEDIAN,SIGMA.",
    ),
]
PayloadFile = Annotated[
    str | None,
    typer.Option(
        "--payload-file",
        metavar="FILE",
        rich_help_panel=_TRAFFIC,
        help="One payload a line, in turn; frames:FILE for a file of frames.",
    ),
]
PayloadUnique = Annotated[
    bool,
    typer.Option(
        "--payload-unique",
        metavar=FLAG,
        rich_help_panel=_TRAFFIC,
        help="Put a number of its own into each payload: without, all may be equal, and a "
        "reply to another request goes unnoticed.",
    ),
]
Expect = Annotated[
    str,
    typer.Option(
        "--expect",
        metavar="WHAT",
        rich_help_panel=_TRAFFIC,
        help="reverse, echo, none (any well-formed reply), or module:function.",
    ),
]

# Connections and limits

Timeout = Annotated[
    str,
    typer.Option(
        "--timeout",
        metavar="TIME",
        rich_help_panel=_LIMITS,
        help="How long a reply may take before its connection is given up.",
    ),
]
Grace = Annotated[
    str,
    typer.Option(
        "--grace",
        metavar="TIME",
        rich_help_panel=_LIMITS,
        help="How long to wait for replies after the last request was sent.",
    ),
]
ConnectRate = Annotated[
    str | None,
    typer.Option(
        "--connect-rate",
        metavar="N",
        rich_help_panel=_LIMITS,
        help="Connections begun a second, at most; without it, as fast as they are made.",
    ),
]
ConnectTimeout = Annotated[
    str,
    typer.Option(
        "--connect-timeout",
        metavar="TIME",
        rich_help_panel=_LIMITS,
        help="How long making all connections may take, beyond what --connect-rate needs.",
    ),
]
Reconnect = Annotated[
    bool,
    typer.Option(
        "--reconnect/--no-reconnect",
        metavar=FLAG,
        rich_help_panel=_LIMITS,
        help="Replace connections that fail.",
    ),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="ADDRESS",
        rich_help_panel=_LIMITS,
        help="Connect from this address of this machine; repeat it to use several in turn. "
        "On loopback 127.0.0.0/8 is used when one is not enough.",
    ),
]

# When a run fails

FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="EXPR",
        rich_help_panel=_FAILING,
        # Nothing like <this>, which would be shown as a placeholder.
        help="Fail the run, with exit code 3, if this holds: 'p99>5ms', 'errors>0.1%'; may be "
        f"repeated. Operators: {' '.join(OPERATORS)}. Metrics: {NAMES}.",
    ),
]
AbortOnFail = Annotated[
    bool,
    typer.Option(
        "--abort-on-fail",
        metavar=FLAG,
        rich_help_panel=_FAILING,
        help="End the run as soon as one of --fail-if has come true for good, or clearly "
        "after a second.",
    ),
]

# TLS

TlsCa = Annotated[
    str | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        rich_help_panel=_TLS,
        help="Who may sign the server's certificate, instead of the system's.",
    ),
]
TlsCert = Annotated[
    str | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        rich_help_panel=_TLS,
        help="The certificate to show to the server.",
    ),
]
TlsKey = Annotated[
    str | None,
    typer.Option(
        "--tls-key",
        metavar="FILE",
        rich_help_panel=_TLS,
        help="Its private key, if it stands in a file of its own.",
    ),
]
TlsServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        metavar="NAME",
        rich_help_panel=_TLS,
        help="The name in the server's certificate, if it is not the host's.",
    ),
]

# Many machines

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="ADDRESS",
        rich_help_panel=_CLUSTER,
        help="Run on the hosts of a Dask cluster, --workers on each: its scheduler, "
        "tcp://HOST:8786 or tls://HOST:8786.",
    ),
]
ClusterHosts = Annotated[
    str | None,
    typer.Option(
        "--cluster-hosts",
        metavar="N",
        show_default="all there are",
        rich_help_panel=_CLUSTER,
        help="Use so many hosts, and wait for them.",
    ),
]
ClusterTimeout = Annotated[
    str,
    typer.Option(
        "--cluster-timeout",
        metavar="TIME",
        rich_help_panel=_CLUSTER,
        help="How long the scheduler or a host may take for anything beyond the run itself.",
    ),
]
ClusterKeepGoing = Annotated[
    bool,
    typer.Option(
        "--cluster-keep-going",
        metavar=FLAG,
        rich_help_panel=_CLUSTER,
        help="Go on with the other hosts when one is lost; without, the run ends early.",
    ),
]
ClusterCa = Annotated[
    str | None,
    typer.Option(
        "--cluster-ca",
        metavar="FILE",
        rich_help_panel=_CLUSTER,
        help="Who may sign the certificates of the cluster.",
    ),
]
ClusterCert = Annotated[
    str | None,
    typer.Option(
        "--cluster-cert",
        metavar="FILE",
        rich_help_panel=_CLUSTER,
        help="The certificate to show to the scheduler.",
    ),
]
ClusterKey = Annotated[
    str | None,
    typer.Option(
        "--cluster-key",
        metavar="FILE",
        rich_help_panel=_CLUSTER,
        help="Its private key, if it stands in a file of its own.",
    ),
]

# Reports

Html = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        rich_help_panel=_REPORTS,
        help="Write a page with charts, to be opened in a browser.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        metavar=FLAG,
        rich_help_panel=_REPORTS,
        help="Print nothing but the last line, and errors.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        rich_help_panel=_REPORTS,
        help="Serve live figures for Prometheus there while the run goes on.",
    ),
]
Repeat = Annotated[
    str | None,
    typer.Option(
        "--repeat",
        metavar="N",
        rich_help_panel=_REPORTS,
        help="Do it all so many times, and show how much the runs differ.",
    ),
]
Csv = Annotated[
    str | None,
    typer.Option(
        "--csv",
        metavar="FILE",
        rich_help_panel=_REPORTS,
        help="Write the figures of each second as CSV.",
    ),
]
Hgrm = Annotated[
    str | None,
    typer.Option(
        "--hgrm",
        metavar="FILE",
        rich_help_panel=_REPORTS,
        help="Write the percentiles of the latency in ms, for HdrHistogram's plotter.",
    ),
]
Hlog = Annotated[
    str | None,
    typer.Option(
        "--hlog",
        metavar="FILE",
        rich_help_panel=_REPORTS,
        help="Write a histogram of each second, for HdrHistogram's log tools.",
    ),
]
Percentiles = Annotated[
    str | None,
    typer.Option(
        "--percentiles",
        metavar="P,...",
        show_default="50,90,99,99.9,99.99",
        rich_help_panel=_REPORTS,
        help="Percentiles in the summary; those of --json are always there, and these too.",
    ),
]
