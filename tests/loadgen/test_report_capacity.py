"""What people and programs are told of a search."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from loadgen.capacity import Ending, Figures, Limit, Result
from loadgen.report.capacity import advice, answer, document, line, summary
from loadgen.report.capacity_html import page
from nbnet.notation import Address

from .searches import Simulation, disturbed, findings, found, ruined, served, terms


def wrong(rate: float, seconds: float) -> Figures:
    return served(rate, seconds, rate, wrong=3)


def interrupted(*_: float) -> Figures:
    raise KeyboardInterrupt


def gone(*_: float) -> Figures:
    return Figures(planned=0, sent=0, on_time=0, held=0, unconnected=50)


def simulated(capacity: float, **changes: Any) -> Result:
    return Simulation(capacity, **changes).search(terms())


def test_the_table_is_the_curve_and_the_answer_stands_last() -> None:
    lines = summary(findings(found())).splitlines()
    assert lines[0] == "50 connections to 127.0.0.1:6789"
    assert lines[2] == "    rate/s     sent       p50       p99  verdict"
    assert lines[3] == "     1,000  100.0 %   1.00 ms   1.00 ms  held"
    assert "    39,800  100.0 %   1.00 ms   1.00 ms  confirmed, 10 s" in lines
    assert any("rate missed: 64.0 % sent, p99 ..." in each for each in lines)
    rates = [int(each[:10].replace(",", "")) for each in lines[3:-2]]
    assert rates == sorted(rates)
    assert lines[-1] == (
        "CAPACITY: 39,800 requests/s hold p99<10ms (confirmed over 10 s; the server is the limit)"
    )


@pytest.mark.parametrize("slo", ["p99<10ms", "p50<1ms,p99<10ms,p99.9<20ms,mean<1ms,max<2ms"])
def test_the_table_fits_80_columns(slo: str) -> None:
    result = Simulation(900_000, odd={1: disturbed, 4: ruined}).search(terms(slo))
    *table, _ = summary(findings(result)).splitlines()
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (simulated(90_000, loader=40_000), "(confirmed over 10 s; the loader is the limit)"),
        (Simulation(9e9).search(terms(max_rate=4e3)), "(confirmed over 10 s; --max-rate is the"),
        (Simulation(9e9).search(terms(max_time=40)), "the limit was not reached in time)"),
        (simulated(0.5), "none: not even 1 requests/s hold p99<10ms (rate missed: 50.0 % sent"),
        (simulated(9e3, odd={2: wrong}), "none: 3 wrong replies at 4,000 requests/s; 2,000 reque"),
        (simulated(9e3, odd={0: wrong}), "none: 3 wrong replies at 1,000 requests/s; no rate held"),
        (simulated(9e3, odd={2: interrupted}), "interrupted; 2,000 requests/s held p99<10ms for 3"),
        (simulated(9e3, odd={0: interrupted}), "interrupted; no rate held so far"),
        (simulated(9e3, odd=dict.fromkeys(range(9, 30), ruined)), "not confirmed; 8,"),
        (simulated(9e3, odd={1: gone, 2: gone}), "none: the server takes no connection any more;"),
    ],
)
def test_the_answer_is_one_line_whatever_the_end(result: Result, says: str) -> None:
    text = answer(findings(result))
    assert text.startswith("CAPACITY: ")
    assert says in text
    assert "\n" not in text


def test_what_is_to_be_done_about_the_limit_is_said() -> None:
    assert advice(findings(simulated(90_000, loader=40_000))) == ["LOADER-BOUND: it was busy"]
    [note] = advice(findings(Simulation(9e9).search(terms(max_time=40))))
    assert note.startswith("OUT OF TIME: ")
    [note] = advice(findings(Simulation(9e9).search(terms(max_rate=4e3))))
    assert note.startswith("MAX-RATE: ")
    assert advice(findings(found())) == []


def test_each_step_is_a_line_of_its_own() -> None:
    steps = Simulation(5_000, odd={1: disturbed}).search(terms()).steps
    assert line(steps[0], 1) == "step 1: 1,000/s for 3 s: held, p99 1.00 ms"
    assert line(steps[1], 2) == "step 2: 2,000/s for 3 s: SLO missed, p99 300 ms"
    assert line(steps[2], 2) == "step 2 again: 2,000/s for 3 s: held, p99 1.00 ms"
    assert line(steps[-1], 9) == "confirming: 4,970/s for 10 s: held, p99 1.00 ms"


# For programs ----------------------------------------------------------------


def test_the_document_has_the_curve_and_the_answer() -> None:
    result = found()
    got = json.loads(json.dumps(document(findings(result)), allow_nan=False))
    assert (got["schema"], got["slo"], got["ending"]) == (
        "loadgen-capacity/1",
        "p99<10ms",
        "found",
    )
    assert got["capacity"] == {
        "requests_per_second": 39_800.0,
        "confirmed": True,
        "limit": "server",
        "reason": None,
    }
    assert got["verdict"] == answer(findings(result))
    assert [step["rate"] for step in got["steps"]] == [step.rate for step in result.steps]
    curve = [step["rate"] for step in got["curve"]]
    assert curve == sorted(set(curve))
    first, last = got["curve"][0], got["curve"][-1]
    assert first["latency_seconds"]["p99"] == pytest.approx(0.001, rel=0.01)
    assert (first["outcome"], first["planned"], first["sent"]) == ("held", 3000, 3000)
    assert last["latency_seconds"]["p99"] is None, "requests without a reply reach into it"
    assert last["outcome"] == "rate missed"


@pytest.mark.parametrize("end", [interrupted, wrong, ruined])
def test_a_search_that_found_nothing_is_a_document_too(end: Any) -> None:
    result = Simulation(9e3, odd=dict.fromkeys(range(50), end)).search(terms())
    got = json.loads(json.dumps(document(findings(result)), allow_nan=False))
    assert got["capacity"]["requests_per_second"] is None
    assert got["interrupted"] is (end is interrupted)


# As a page -------------------------------------------------------------------


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_answer_chart_and_table_and_needs_nothing_else() -> None:
    shown = findings(found())
    text = page(shown)
    parsed = Page(text)
    assert parsed.tags.count("h1") == 1
    assert parsed.tags.count("svg") == 1
    assert parsed.tags.count("tr") == 1 + len(shown.result.steps)
    assert "script" not in parsed.tags
    assert parsed.links == []
    assert "@import" not in text
    assert "url(" not in text
    assert answer(shown) in parsed.text
    assert "p99<10ms" in parsed.text
    assert "prefers-color-scheme: dark" in text


def test_what_comes_from_outside_is_escaped_on_the_page() -> None:
    evil = Address("", 0, path="/tmp/<script>alert(1)</script>&")
    result = simulated(90_000, loader=40_000)
    text = page(findings(result, target=evil))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


@pytest.mark.parametrize("odd", [{0: interrupted}, {1: interrupted}, {0: wrong}])
def test_a_page_without_a_curve_has_no_chart(odd: Any) -> None:
    parsed = Page(page(findings(simulated(9e3, odd=odd))))
    assert "svg" not in parsed.tags
    assert "table" in parsed.tags
    assert "CAPACITY: " in parsed.text


@pytest.mark.parametrize("slo", ["errors<1%", "p50<1s,p99.9<2s,max<10s"])
def test_any_objective_can_be_drawn(slo: str) -> None:
    result = Simulation(5_000).search(terms(slo))
    parsed = Page(page(findings(result)))
    assert "svg" in parsed.tags
    drawn = parsed.text.replace(" ", "")
    assert all(clause in drawn for clause in str(result.terms.slo).split(","))


def test_connections_that_were_the_limit_are_said() -> None:
    few = findings(replace(found(), limit=Limit.CONNECTIONS))
    assert advice(few)[0].startswith("CONNECTIONS: all of them were waiting")
    assert "the 50 connections are the limit" in answer(few)


def test_a_search_that_measured_nothing_says_so() -> None:
    none = findings(replace(found(), steps=(), best=None, confirmed=None, ending=Ending.TIME))
    assert summary(none).splitlines()[-1] == "CAPACITY: nothing was measured"
    assert "sent" not in summary(none)


def test_the_page_of_a_search_without_an_answer_marks_none() -> None:
    assert ">confirmed<" in page(findings(found()))
    assert ">confirmed<" not in page(findings(replace(found(), confirmed=None)))
