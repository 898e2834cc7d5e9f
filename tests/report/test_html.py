"""The page: what it says for 0, 1, some and 10,000 trials, that it is well formed, escaped and needs nothing else."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nord_hpc.report.html import write_report
from nord_hpc.spaces.conv_graph import ConvGraph

SPACE = ConvGraph(ConvGraph.Options())
DESCRIPTORS = [SPACE.to_descriptor(SPACE.sample(np.random.default_rng(seed))).to_json() for seed in range(20)]


def row(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "number": number,
        "parents": [],
        "state": "completed",
        "fitness": 0.5,
        "descriptor": DESCRIPTORS[number % len(DESCRIPTORS)],
        "descriptor_hash": f"{number:064x}",
        "fidelity": {"epochs": 4, "fraction": 1.0},
        "seed": number,
        "seconds": 1.25,
        "started_seconds": float(number),
        "finished_seconds": number + 1.25,
        "reason": None,
        "failure": None,
        "metrics": {},
        "n_parameters": 1000 + number,
        "multiply_adds": 2000 + number,
        "commit": number,
        **fields,
    }


def summary(**fields: Any) -> dict[str, Any]:
    return {
        "name": "digits_evolution",
        "state": "finished",
        "direction": "maximize",
        "metric": "accuracy",
        "trials": {"completed": 0, "infeasible": 0, "failed": 0, "running": 0, "budget": 40},
        "best": None,
        "utilization": 0.915,
        "wall_seconds": 95.0,
        "ranks": 5,
        "gangs": 2,
        "history_sha256": "0f" * 32,
        "job_yaml": "name: digits_evolution\nseed: 0\n",
        "environment": {"torch": "2.13.0"},
        **fields,
    }


class Page(HTMLParser):
    """A page as lists of texts and of table rows; counts tags that are not closed in order."""

    VOID = frozenset({"meta", "path", "use", "rect", "image", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.mistakes: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.table_rows: list[list[str]] = []
        self.paragraphs: list[str] = []
        self.feed(text)
        self.close()
        self.mistakes += self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "action")]
        if tag not in self.VOID:
            self.open_tags.append(tag)
        if tag == "tr":
            self.table_rows.append([])
        elif tag in ("td", "th"):
            self.table_rows[-1].append("")
        elif tag in ("p", "h2"):
            (self.paragraphs if tag == "p" else self.headings).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "action")]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.open_tags or self.open_tags.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open_tags):
            self.table_rows[-1][-1] += data
        elif "p" in self.open_tags:
            self.paragraphs[-1] += data
        elif "h2" in self.open_tags:
            self.headings[-1] += data


def write(rows: list[dict[str, Any]], about: dict[str, Any], folder: Path) -> tuple[str, Page]:
    path = folder / "report.html"
    write_report(rows, about, path)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.mistakes == []
    return text, page


def test_a_finished_search_is_told_in_words_curves_network_and_tables(tmp_path: Path) -> None:
    rows = [row(k, fitness=k / 100, parents=[k - 1] if k else []) for k in range(12)]
    rows += [
        row(12, state="failed", fitness=None, failure="not_finite", reason="the loss is NaN in epoch 2"),
        row(13, state="infeasible", fitness=None, reason="layer 'pool': a window of 2 does not fit 1 x 1"),
        row(14, state="infeasible", fitness=None, reason="layer 'pool': a window of 2 does not fit 1 x 1"),
    ]
    trials = {"completed": 12, "infeasible": 2, "failed": 1, "running": 0, "budget": 13}
    best = {"trial": 11, "fitness": 0.11, "test": {"loss": 3.0, "accuracy": 0.1234567}}
    text, page = write(rows, summary(trials=trials, best=best), tmp_path)
    assert page.paragraphs[0] == (
        "The search has finished: 12 trials completed, 1 failed, 2 infeasible (budget: 13 trials) in 95 seconds on "
        "5 ranks in 2 gangs, busy 92% of the time. The best network by validation is trial 11, with 1,011 parameters "
        "and 2,011 multiply-adds for a sample."
    )
    assert page.headings == [
        "Best so far", "Best network trial 11", "The 10 best trials", "Failures", "Job", "Where it ran",
    ]  # fmt: skip
    assert "<b>0.1100</b><span>validation accuracy</span>" in text
    assert "<b>0.1235</b><span>test accuracy</span>" in text
    assert text.count("<svg") == 3
    ranking = [cells for cells in page.table_rows if len(cells) == 8]
    assert [cells[0] for cells in ranking] == ["trial", *map(str, range(11, 1, -1))]
    assert ranking[1][:7] == ["11", "0.1100", "4", "1,011", "2,011", "1.25", "10"]
    layers = [cells for cells in page.table_rows if len(cells) == 4 and cells[0].startswith(("input", "0_"))]
    expected = [layer for layer in DESCRIPTORS[11]["layers"] if layer["name"].startswith(("input", "0_"))]
    assert [cells[:2] for cells in layers] == [[layer["name"], layer["kind"]] for layer in expected]
    assert ["infeasible", "layer 'pool': a window of 2 does not fit 1 x 1", "2", "13, 14"] in page.table_rows
    assert ["failed: not_finite", "the loss is NaN in epoch 2", "1", "12"] in page.table_rows
    assert ["history_sha256", "0f" * 32] in page.table_rows
    assert "<pre>name: digits_evolution\nseed: 0\n</pre>" in text


def test_when_minimizing_the_lowest_is_the_best_and_ties_go_to_the_lowest_number(tmp_path: Path) -> None:
    rows = [row(k, fitness=[0.3, 0.1, 0.2, 0.1][k]) for k in range(4)]
    best = {"trial": 1, "fitness": 0.1, "test": None}
    trials = {"completed": 4, "infeasible": 0, "failed": 0, "running": 1, "budget": None}
    about = summary(direction="minimize", metric="loss", best=best, trials=trials, state="running")
    text, page = write(rows, about, tmp_path)
    assert [cells[0] for cells in page.table_rows if len(cells) == 8] == ["trial", "1", "3", "2", "0"]
    assert page.paragraphs[0].startswith("The search is running: 4 trials completed, 1 running in 95 seconds")
    assert page.paragraphs[0].endswith("It is tested once, when the search has finished.")
    assert "test loss" not in text


def test_no_trial_at_all(tmp_path: Path) -> None:
    text, page = write([], summary(state="interrupted", utilization=None, wall_seconds=0.5), tmp_path)
    assert page.paragraphs == [
        "The search was interrupted: 0 trials completed (budget: 40 trials) in 0.5 seconds on 5 ranks in 2 gangs. "
        "No trial has completed yet, so there is no best network.",
        "None: no trial has failed, and none was infeasible.",
    ]
    assert "<svg" not in text


def test_only_failed_trials(tmp_path: Path) -> None:
    rows = [row(k, state="failed", fitness=None, failure="lost", reason=None) for k in range(20)]
    _, page = write(rows, summary(), tmp_path)
    assert ["failed: lost", "no reason given", "20", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"] in page.table_rows


def test_one_trial(tmp_path: Path) -> None:
    trials = {"completed": 1, "infeasible": 0, "failed": 0, "running": 0, "budget": 1}
    best = {"trial": 0, "fitness": 0.5, "test": 0.25}
    text, page = write([row(0)], summary(best=best, trials=trials), tmp_path)
    assert "1 trial completed (budget: 1 trial)" in page.paragraphs[0]
    assert page.headings[2] == "The best trial"
    assert "<b>0.2500</b><span>test accuracy</span>" in text
    assert text.count("<svg") == 3


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    hostile = '</td><script>alert("1")</script>&amp;'
    descriptor = {
        "first": hostile,
        "last": hostile,
        "layers": [{"name": hostile, "kind": hostile, "parameters": {hostile: hostile}, "join": "add", "inputs": []}],
    }
    rows = [
        row(0, descriptor=descriptor),
        row(1, state="failed", fitness=None, failure="exception", reason=hostile, descriptor=descriptor),
    ]
    about = summary(
        name=hostile,
        state=hostile,
        metric=hostile,
        best={"trial": 0, "fitness": 0.5, "test": {hostile: 0.5}},
        job_yaml=hostile,
        environment={hostile: hostile},
        trials={"completed": 1, "infeasible": 0, "failed": 1, "running": 0, "budget": 2},
    )
    text, page = write(rows, about, tmp_path)
    assert "<script" not in text
    assert [hostile, hostile] in page.table_rows
    assert ["failed: exception", hostile, "1", "1"] in page.table_rows


def test_the_page_needs_nothing_from_elsewhere_and_knows_dark_and_small_screens(tmp_path: Path) -> None:
    best = {"trial": 3, "fitness": 0.5, "test": None}
    text, page = write([row(k) for k in range(5)], summary(best=best), tmp_path)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert set(re.findall(r"https?://[^\s\"<)]*", text)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert "@import" not in text
    assert "@media (prefers-color-scheme:dark)" in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_equal_searches_give_equal_pages_that_replace_one_another(tmp_path: Path) -> None:
    best = {"trial": 3, "fitness": 0.5, "test": None}
    rows = [row(k) for k in range(5)]
    first, _ = write(rows, summary(best=best), tmp_path)
    second, _ = write(rows, summary(best=best), tmp_path)
    assert first == second


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.timing
def test_ten_thousand_trials_take_seconds_and_a_small_page(tmp_path: Path, direction: str) -> None:
    scores = np.random.default_rng(0).random(10_000).tolist()
    rows = [row(k, fitness=score) for k, score in enumerate(scores)]
    for k in range(0, 10_000, 10):
        rows[k].update(state="failed", fitness=None, failure="exception", reason=f"layer {k} is wrong")
    best = {"trial": 1, "fitness": 0.5, "test": None}
    before = time.process_time()
    text, page = write(rows, summary(best=best, direction=direction), tmp_path)
    assert time.process_time() - before < 5
    assert len(text) < 1_000_000
    assert "And 960 more reasons." in page.paragraphs
