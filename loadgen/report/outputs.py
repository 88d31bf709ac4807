"""The files that a run is written to, by the options that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from loadgen.report import Run, csv, files, hdrlog, json


def save(run: Run, chosen: Mapping[str, str], percentiles: Sequence[float]) -> list[str]:
    """Write all that was asked for; what could not be written, and why.

    Args:
        chosen: option to path.
        percentiles: those that the JSON is to have beside its own.
    """
    forms: dict[str, Callable[[], Iterator[str]]] = {
        "--json": lambda: json.text(run, percentiles),
        "--html": lambda: _page(run),
        "--csv": lambda: csv.series(run),
        "--hgrm": lambda: hdrlog.hgrm(run),
        "--hlog": lambda: hdrlog.hlog(run),
    }
    unsaved = []
    # Standard output at last: its reader may have gone.
    for option, path in sorted(chosen.items(), key=lambda output: output[1] == files.STDOUT):
        try:
            files.write(path, forms[option]())
        except OSError as error:
            unsaved.append(f"cannot write {files.named(path)}: {error.strerror}")
    return unsaved


def _page(run: Run) -> Iterator[str]:
    from loadgen.report import html  # its charts take their time, and most do without

    yield html.page(run)
