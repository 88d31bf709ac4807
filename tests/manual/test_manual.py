"""Whether the manual is true: see the package.

The long form runs what takes its time as well::

    pytest -m slow tests/manual
"""

from __future__ import annotations

import ast
import contextlib
import re
import tomllib
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types

import loadgen.verdict
import nbclient.cli
import nbnet.cli
import nbnet.command
import nbnet.conform_command
from manual import exceptions
from manual.generated import current
from manual.pages import PAGES, ROOT, Block, anchors_of, blocks_of, links_of, name_of, quoted_in
from manual.running import Running
from manual.shell import check_options, commands_in, commands_of
from nbnet import FrameDecoder
from nbnet.config import read_options
from nbnet.notation import parse_duration, parse_place
from nbnet.server import DEFAULT_PORT

NAMES = [name_of(path) for path in PAGES]


def blocks(name: str) -> list[Block]:
    """The blocks of a page with which something is to be done."""
    return blocks_of(name, (ROOT / name).read_text("utf-8"))


def listed(block: Block) -> bool:
    return (block.page, block.text.partition("\n")[0]) in exceptions.BLOCKS


def begins(command: str, *lists: dict[str, str]) -> bool:
    return any(re.match(start, command) for each in lists for start in each)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with contextlib.ExitStack() as stack:
        running = Running(tmp_path, stack)
        for block in blocks(name):
            if not listed(block):
                running.do(block, lambda text: begins(text, exceptions.COMMANDS, exceptions.LONG))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if any(
            begins(command.text, exceptions.LONG)
            for block in blocks(name)
            if block.language in ("console", "sh")
            for command in commands_of(block)
        )
    ],
)
def test_what_takes_its_time_is_true(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        running = Running(tmp_path, stack)
        for block in blocks(name):
            if not listed(block):
                running.do(block, lambda text: begins(text, exceptions.COMMANDS))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_from_the_code_is_current(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert text == current(text), "run: PYTHONPATH=tests python -m manual"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links_of(page.read_text("utf-8")):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text("utf-8")), link


def rows_of(page: str) -> list[tuple[str, list[str]]]:
    """The examples of bytes in the reference of the protocol, with the title of their table."""
    found, title = [], ""
    for line in (ROOT / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| stream of "):
            title = cells[0]
        elif line.startswith("| `b"):
            found.append((title, [cell.strip("`") for cell in cells]))
    return found


@pytest.mark.parametrize(("stream", "cells"), rows_of("docs/reference/protocol.md"))
def test_the_examples_of_the_protocol_are_true(stream: str, cells: list[str]) -> None:
    data, payloads, error = cells
    decoder = FrameDecoder(min_payload={"stream of requests": 1, "stream of replies": 0}[stream])
    assert decoder.feed(ast.literal_eval(data)) == ast.literal_eval(payloads)
    assert str(decoder.error or "") == error


def test_there_are_examples_of_requests_and_of_replies() -> None:
    titles = [title for title, _ in rows_of("docs/reference/protocol.md")]
    assert titles.count("stream of requests") > 10
    assert titles.count("stream of replies") == 3


def test_the_manifests_for_kubernetes_fit_together(tmp_path: Path) -> None:
    [block] = [each for each in blocks("docs/how-to/kubernetes.md") if each.language == "yaml"]
    config, deployment, service = yaml.safe_load_all(block.text)
    kinds = [each["kind"] for each in (config, deployment, service)]
    assert kinds == ["ConfigMap", "Deployment", "Service"]
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels

    [container] = template["spec"]["containers"]
    words = container["args"]
    ports = {each["containerPort"] for each in container["ports"]}
    probed = {container[each]["tcpSocket"]["port"] for each in ("readinessProbe", "livenessProbe")}
    assert {DEFAULT_PORT} == probed == {each["port"] for each in service["spec"]["ports"]}
    assert ports == {DEFAULT_PORT, parse_place(words[words.index("--metrics") + 1]).port}
    drain = parse_duration(words[words.index("--drain") + 1])
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert template["spec"]["terminationGracePeriodSeconds"] > pause + drain

    [volume] = template["spec"]["volumes"]
    [mount] = container["volumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    [(name, text)] = config["data"].items()
    assert words[words.index("--config") + 1] == f"{mount['mountPath']}/{name}"
    (tmp_path / name).write_text(text)
    assert read_options({}, tmp_path / name).limits.max_per_ip == 1000


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_are_whole_and_ask_for_no_more_than_they_need(name: str) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for title, job in workflow["jobs"].items():
        assert job["timeout-minutes"], title
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= workflow["jobs"].keys()
        for step in job["steps"]:
            assert "uses" in step or "run" in step
            if "uses" in step:
                assert re.fullmatch(r"[\w./-]+@(v\d+|release/v\d+|[0-9a-f]{40})", step["uses"])
        for text in commands_in(job):
            check_options(text, f"{name}.yml, {title}")
    writing = {
        title: {each for each, right in job.get("permissions", {}).items() if right == "write"}
        for title, job in workflow["jobs"].items()
    }
    assert {title: rights for title, rights in writing.items() if rights} == (
        {}
        if name == "ci"
        else {
            "attest": {"id-token", "attestations"},
            "publish": {"id-token"},
            "release": {"contents"},
        }
    )


def test_the_matrix_has_the_pythons_that_are_supported() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = [
        each.rsplit(" ", 1)[1]
        for each in project["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", each)
    ]
    assert workflow["jobs"]["checks"]["strategy"]["matrix"]["python"] == supported


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_have_these_options(name: str) -> None:
    for text in quoted_in((ROOT / name).read_text("utf-8")):
        if re.match(r"(PYTHONPATH=tests )?(\S*/)?(nbnet|nbclient|loadgen|pytest|python) ", text):
            check_options(text, f"{name}: {text}")
        elif re.match(r"(simulation|fuzz|soak)\b.* ", text):
            check_options(f"python -m {text}", f"{name}: {text}")


def test_every_exit_code_has_its_line() -> None:
    rows = {}
    for line in (ROOT / "docs" / "reference" / "exit-codes.md").read_text("utf-8").splitlines():
        if re.match(r"\| \d", line):
            code, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[int(code)] = [bool(cell) for cell in cells]
    common = {nbnet.command.EXIT_FAILED, nbnet.command.EXIT_USAGE, 0}
    stopped = nbnet.command.EXIT_INTERRUPTED
    for column, codes in enumerate(
        [
            {nbnet.cli.EXIT_CANNOT_LISTEN, nbnet.conform_command.EXIT_CANNOT_CONNECT},
            {nbclient.cli.EXIT_CANNOT_CONNECT, nbclient.cli.EXIT_TIMED_OUT, stopped},
            {loadgen.verdict.EXIT_THRESHOLD, loadgen.verdict.EXIT_NO_CONNECTION, stopped},
        ]
    ):
        assert {code for code, cells in rows.items() if cells[column]} == codes | common


def test_every_page_is_one_click_from_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in links_of(index.read_text("utf-8"))
    }
    missing = [name for name in NAMES if name.startswith("docs/") and ROOT / name not in linked]
    assert missing == ["docs/README.md"]
    assert "docs/README.md" in links_of((ROOT / "README.md").read_text("utf-8"))


def test_every_exception_is_met_with() -> None:
    every = [block for name in NAMES for block in blocks(name)]
    commands = [
        command.text
        for block in every
        if block.language in ("console", "sh")
        for command in commands_of(block)
    ]
    for start in (*exceptions.COMMANDS, *exceptions.LONG):
        assert any(re.match(start, command) for command in commands), start
    firsts = {(block.page, block.text.partition("\n")[0]) for block in every}
    assert firsts >= exceptions.BLOCKS.keys()
    for pattern, _ in exceptions.INSTEAD:
        assert any(re.search(pattern, command) for command in commands), pattern
