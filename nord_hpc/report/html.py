"""One self-contained page about a search, from the rows of its trials and a summary; it reads no run folder itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nord_hpc.report.architecture import architecture_figure, layer_text
from nord_hpc.report.curves import best_so_far_figure, time_unit
from nord_hpc.report.figures import COLOURS, DARK_COLOURS, to_svg
from nord_hpc.trial import TrialState

Row = Mapping[str, Any]

N_BEST = 10
MOST_REASONS = 40
MOST_NUMBERS = 12


def write_report(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Write the page, under a temporary name first.

    Args:
        rows: one for each trial, with number, parents, state, fitness, descriptor (JSON form), descriptor_hash,
            fidelity (epochs, fraction), seed, seconds, started_seconds and finished_seconds (since the start of the
            search), reason, failure, metrics, n_parameters, multiply_adds, commit (place in the order of commits, None
            while there is none).
        summary: name, state, direction, metric, trials (completed, infeasible, failed, running, budget), best (trial,
            fitness, test; or None), utilization, wall_seconds, ranks, gangs, history_sha256, job_yaml, environment.
        path: of the page; replaced where it exists.

    Raises:
        BadInput: matplotlib is not installed.
    """
    text = _page(rows, summary)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _page(rows: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    best = _best_row(rows, summary)
    sections = [
        _summary(best, summary),
        _progress(rows, summary),
        _network(best),
        _best_trials(rows, summary),
        _failures(rows),
        _provenance(summary),
    ]
    name = escape(summary["name"])
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name} · nord_hpc</title>\n<style>\n{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _best_row(rows: Iterable[Row], summary: Mapping[str, Any]) -> Row | None:
    best = summary["best"]
    if best is None or best["trial"] is None:
        return None
    return next((row for row in rows if row["number"] == best["trial"]), None)


def _summary(best: Row | None, summary: Mapping[str, Any]) -> str:
    trials, state = summary["trials"], summary["state"]
    counts = [_count(trials["completed"], "trial") + " completed"]
    counts += [f"{trials[key]:,} {key}" for key in ("failed", "infeasible", "running") if trials[key]]
    budget = f" (budget: {_count(trials['budget'], 'trial')})" if trials["budget"] else ""
    verbs = {
        "finished": "The search has finished",
        "running": "The search is running",
        "interrupted": "The search was interrupted",
    }
    verb = verbs.get(state, f"The search is {state}")
    busy = "" if summary["utilization"] is None else f", busy {100 * summary['utilization']:.0f}% of the time"
    ranks = f"{_count(summary['ranks'], 'rank')} in {_count(summary['gangs'], 'gang')}"
    sentences = [f"{verb}: {', '.join(counts)}{budget} in {_span(summary['wall_seconds'])} on {ranks}{busy}."]
    tiles = []
    if best is None:
        sentences.append("No trial has completed yet, so there is no best network.")
    else:
        metric = summary["metric"]
        sentences.append(
            f"The best network by validation is trial {best['number']}, with {best['n_parameters']:,} parameters and "
            f"{best['multiply_adds']:,} multiply-adds for a sample."
        )
        tiles = [(f"validation {metric}", _number(best["fitness"]))]
        tiles += [(f"test {key}", _number(value)) for key, value in _test_metrics(summary).items()]
        if not _test_metrics(summary):
            sentences.append("It is tested once, when the search has finished.")
        tiles += [("parameters", f"{best['n_parameters']:,}"), ("trials completed", f"{trials['completed']:,}")]
    figures = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for label, value in tiles)
    name = escape(summary["name"])
    return (
        f'<header><h1>{name}</h1><span class="state">{escape(state)}</span></header>\n'
        f"<p>{escape(' '.join(sentences))}</p>\n" + (f'<div class="tiles">{figures}</div>' if figures else "")
    )


def _test_metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on the test part, the job's own metric first; empty while nothing was."""
    test = (summary["best"] or {}).get("test")
    if test is None:
        return {}
    if not isinstance(test, Mapping):
        return {summary["metric"]: test}
    first = [summary["metric"]] if summary["metric"] in test else []
    chosen = first or [key for key, value in test.items() if isinstance(value, (int, float))][:1]
    return {key: test[key] for key in chosen}


def _progress(rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> str:
    if not any(row["state"] == TrialState.COMPLETED for row in rows):
        return ""
    parts = []
    for against, words in (("trials", "trials"), ("time", "time")):
        figure = best_so_far_figure(
            rows,
            direction=summary["direction"],
            metric=summary["metric"],
            against=against,  # type: ignore[arg-type]
        )
        title = f"Best validation {summary['metric']} so far, against {words}"
        parts.append(f"<figure>{to_svg(figure, key=against, title=title)}</figure>")
    return f'<section><h2>Best so far</h2>\n<div class="pair">{"".join(parts)}</div></section>'


def _network(best: Row | None) -> str:
    if best is None:
        return ""
    descriptor = best["descriptor"]
    svg = to_svg(architecture_figure(descriptor), key="network", title=f"The network of trial {best['number']}")
    body = []
    for layer in descriptor["layers"]:
        reads = ", ".join(layer["inputs"])
        if len(layer["inputs"]) > 1:
            reads = f"{layer['join']}: {reads}"
        parameters = ", ".join(f"{key} {value}" for key, value in layer["parameters"].items())
        body.append([layer["name"], layer["kind"], parameters, reads])
    table = _table(["layer", "kind", "parameters", "reads"], body)
    unfolded = " open" if len(body) <= 12 else ""
    return (
        f"<section><h2>Best network <small>trial {best['number']}</small></h2>\n"
        f'<figure class="wide">{svg}</figure>\n'
        f"<details{unfolded}><summary>{_count(len(body), 'layer')}, as in the descriptor; the head follows the last"
        f"</summary>{table}</details></section>"
    )


def _best_trials(rows: list[dict[str, Any]], summary: Mapping[str, Any]) -> str:
    sign = 1 if summary["direction"] == "minimize" else -1
    completed = [row for row in rows if row["state"] == TrialState.COMPLETED]
    completed.sort(key=lambda row: (sign * row["fitness"], row["number"]))
    if not completed:
        return ""
    titles = ["trial", summary["metric"], "epochs", "parameters", "multiply-adds", "seconds", "parents", "network"]
    body = [
        [
            str(row["number"]),
            _number(row["fitness"]),
            _fidelity(row["fidelity"]),
            f"{row['n_parameters']:,}",
            f"{row['multiply_adds']:,}",
            f"{row['seconds']:.2f}",
            ", ".join(map(str, row["parents"])) or "none",
            _outline(row["descriptor"]),
        ]
        for row in completed[:N_BEST]
    ]
    title = "The best trial" if len(body) == 1 else f"The {len(body)} best trials"
    return f"<section><h2>{title}</h2>\n{_table(titles, body, numeric=range(6))}</section>"


def _failures(rows: list[dict[str, Any]]) -> str:
    groups: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if row["state"] in (TrialState.FAILED, TrialState.INFEASIBLE):
            state = TrialState(row["state"]).value
            kind = f"{state}: {row['failure']}" if row["failure"] else state
            groups.setdefault((kind, row["reason"] or "no reason given"), []).append(row["number"])
    if not groups:
        return "<section><h2>Failures</h2>\n<p>None: no trial has failed, and none was infeasible.</p></section>"
    largest = sorted(groups.items(), key=lambda item: (-len(item[1]), item[1][0]))
    body = []
    for (kind, reason), numbers in largest[:MOST_REASONS]:
        shown = ", ".join(map(str, numbers[:MOST_NUMBERS])) + (", …" if len(numbers) > MOST_NUMBERS else "")
        body.append([kind, reason, f"{len(numbers):,}", shown])
    table = _table(["what", "reason", "trials", "numbers"], body, numeric=(2,))
    more = len(largest) - MOST_REASONS
    rest = f"<p>And {_count(more, 'more reason')}.</p>" if more > 0 else ""
    return f"<section><h2>Failures</h2>\n{table}{rest}</section>"


def _provenance(summary: Mapping[str, Any]) -> str:
    facts = [["history_sha256", str(summary["history_sha256"])]]
    facts += [[str(key), str(value)] for key, value in summary["environment"].items()]
    return (
        f"<section><h2>Job</h2>\n<pre>{escape(summary['job_yaml'])}</pre></section>\n"
        f"<section><h2>Where it ran</h2>\n{_table(['', ''], facts)}</section>"
    )


def _table(titles: Sequence[str], body: Iterable[Sequence[str]], *, numeric: Iterable[int] = ()) -> str:
    right = set(numeric)
    align = [' class="n"' if column in right else "" for column in range(len(titles))]
    head = "".join(f"<th{a}>{escape(title)}</th>" for a, title in zip(align, titles, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{a}>{escape(text)}</td>" for a, text in zip(align, texts, strict=True)) + "</tr>"
        for texts in body
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(titles) else ""
    return f'<div class="table"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def _outline(descriptor: Mapping[str, Any]) -> str:
    """The layers with weights that mix channels, in short."""
    heavy = [layer for layer in descriptor["layers"] if "Conv" in layer["kind"] or "Linear" in layer["kind"]]
    texts = [layer_text(layer["kind"], layer["parameters"]) for layer in heavy[:8]]
    return "; ".join(text.replace(" ", "\N{NO-BREAK SPACE}") for text in texts) + ("; …" if len(heavy) > 8 else "")


def _fidelity(fidelity: Mapping[str, Any]) -> str:
    share = fidelity["fraction"]
    return str(fidelity["epochs"]) + (f" on {share:.0%}" if share != 1 else "")


def _number(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _span(seconds: float) -> str:
    unit, divisor = time_unit(seconds)
    return f"{seconds / divisor:.3g} {unit}"


def _style() -> str:
    def variables(colours: Mapping[str, str]) -> str:
        return "".join(f"--{role}:{colour};" for role, colour in colours.items())

    return (
        f":root{{color-scheme:light dark;{variables(COLOURS)}}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK_COLOURS)}}}}}\n{STYLE}"
    )


STYLE = """\
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
header{display:flex;flex-wrap:wrap;align-items:center;gap:.75rem}
h1{font-size:1.7rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.5rem 0 .75rem}
h2 small{color:var(--muted);font-weight:400}
p{max-width:46rem;margin:.75rem 0}
.state{font-size:.8rem;padding:.1rem .6rem;border:1px solid var(--rule);border-radius:1rem;color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.75rem;margin:1.25rem 0}
.tiles div{background:var(--panel);border-radius:.5rem;padding:.7rem .9rem}
.tiles b{display:block;font-size:1.5rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tiles span{color:var(--muted);font-size:.85rem}
figure{margin:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.pair svg{display:block;width:100%;height:auto}
.wide{overflow-x:auto;border:1px solid var(--rule);border-radius:.5rem;padding:.5rem}
.wide svg{display:block;width:var(--width);height:auto;margin:0 auto}
.table{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;min-width:100%}
th{text-align:left;color:var(--muted);font-weight:500;white-space:nowrap}
th,td{padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
td{overflow-wrap:anywhere;min-width:5.5rem}
td:last-child{min-width:22rem}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;overflow-wrap:normal;min-width:0}
details summary{cursor:pointer;color:var(--muted);margin:.75rem 0}
pre{background:var(--panel);border-radius:.5rem;padding:.9rem;overflow-x:auto;font-size:.85rem;line-height:1.45}
"""
