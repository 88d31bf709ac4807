"""Whether what the page about many machines tells people to type is what programs take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml  # type: ignore[import-untyped]  # ships no types

from loadgen.cli import app
from loadgen.plan import parse_scheduler

PAGE = (Path(__file__).parents[2] / "docs" / "many-machines.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """What stands in the shell blocks, by its words."""
    found = []
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[: len(program.split())] == program.split():
                found.append(words[len(program.split()) :])
    return found


def options(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def test_the_options_of_loadgen_exist() -> None:
    known = {name for each in typer.main.get_command(app).params for name in each.opts}
    for words in commands("loadgen"):
        assert options(words) <= known
        scheduler = words[words.index("--cluster") + 1]
        assert parse_scheduler(scheduler) == scheduler
    assert len(commands("loadgen")) == 3
    ours = {each for each in known if each.startswith("--cluster")}
    assert len(ours) == 7
    assert all(each in PAGE for each in ours)


@pytest.mark.parametrize("program", ["scheduler", "worker"])
def test_the_options_of_dask_exist(program: str) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    main = dask_scheduler.main if program == "scheduler" else dask_worker.main
    known = {name for each in main.params for name in (*each.opts, *each.secondary_opts)}
    found = [options(words) for words in commands(f"dask {program}")]
    assert len(found) >= 2
    assert set().union(*found) <= known


def test_the_manifests_are_whole() -> None:
    [block] = blocks("yaml")
    documents = list(yaml.safe_load_all(block))
    assert [each["kind"] for each in documents] == ["Deployment", "Service", "DaemonSet", "Job"]
    job = documents[-1]["spec"]["template"]["spec"]["containers"][0]
    known = {name for each in typer.main.get_command(app).params for name in each.opts}
    assert options(job["args"]) <= known
    for each in (documents[0], documents[2]):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert each["spec"]["selector"]["matchLabels"] == labels
