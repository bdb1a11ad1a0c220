"""One self-contained HTML file for a comparison, a tournament or a single run.

Everything is inside: figures as SVG, pictures as data. No script, no request to anywhere, and a content policy that
forbids both. Names of environments, errors and options are hostile strings: all text goes through `escape`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfmarl import __version__
from mfmarl.errors import ConfigError
from mfmarl.evaluation import drawing, results, summary
from mfmarl.evaluation.page import STYLE
from mfmarl.evaluation.results import BURN_IN, Comparison, Failed, Run, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_PICTURE = 12_000_000
"""Bytes; a larger film is named and not taken in."""
MOST_CURVES = 2
"""Learning curves of measures per environment, beside that of the score."""
_SIGNS = {"better": "▲", "worse": "▼", "not separable": "≈", "no result": "✕"}
_TYPES = {".gif": "image/gif", ".png": "image/png"}


def write_report(
    path: Path,
    *,
    column: str = "",
    burn_in: float = BURN_IN,
    failed: Failed = "worst",
    baseline: str = "",
    allow_unequal: bool = False,
    without_diverged: bool = False,
) -> Path:
    """Write `report.html`, `summary.json` and `figures/*.svg|png` of a comparison or tournament folder; returns the page.

    Raises ConfigError where the folder cannot be read (see `results.read_comparison`).
    """
    path = Path(path)
    if (path / "tournament.json").is_file() and not (path / "comparison.json").is_file():
        return report_tournament(path)
    comparison = results.read_comparison(
        path,
        column=column,
        burn_in=burn_in,
        failed=failed,
        baseline=baseline,
        allow_unequal=allow_unequal,
        without_diverged=without_diverged,
    )
    table = summary.summary(comparison)
    write_text(path / "summary.json", json.dumps(table, indent=1))
    title = comparison.name
    body = [
        f"<header><h1>{escape(title)}</h1>{_lead(comparison, table)}</header>",
        *(_environment(comparison, table, environment) for environment in comparison.environments),
        _across(comparison, table),
        _failures(table),
        _method(comparison, table),
        _settings(comparison.runs, comparison.plan),
        _repeat(comparison),
    ]
    return write_text(path / "report.html", html_page(title, body))


def report_run(path: Path) -> Path:
    """Write `report.html` and `figures/run.svg|png` of one run folder; returns the page."""
    from mfmarl.evaluation import figures

    path = Path(path)
    run = results.read_run(path)
    title = f"{run.agent} on {run.environment}, seed {run.seed}"
    state = f"{run.state} at step {run.last_step:,}" + (f": {run.error}" if run.error else "")
    rows = []
    for name in [c for c in run.columns if c.startswith(("eval/", "train/")) or c in summary.GAPS]:
        known = run.references.get(name) or run.references.get(name.partition("/")[2])
        average = results.time_average(run, name)
        rows.append(
            [
                name,
                summary.number(average),
                summary.number(known.value) if known else "",
                summary.number(abs(average - known.value)) if known else "",
                f"{known.kind}; {known.source}" if known else "",
            ]
        )
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(state)}. "
        f"{summary.count(run.agent_steps)} agent-steps in {summary.duration(run.wall)} "
        f"({summary.duration(run.cpu)} of CPU), {summary.count(run.rate)} agent-steps per second.</p></header>",
        _pictures(path),
        html_figure(
            path,
            "run",
            figures.single_run(run),
            "What the run measured, as it learned; dashed lines are known answers.",
        ),
        "<section><h2>Time averages</h2>",
        html_table(
            ["measure", "mean of the last half", "theory", "distance", "kind and source"], rows, numbers=(1, 2, 3)
        ),
        "<p class='note'>One run is one sample: for intervals, compare several seeds.</p></section>",
        _diagnosis(path),
        _settings([run], {}),
    ]
    return write_text(path / "report.html", html_page(title, body))


def _diagnosis(path: Path) -> str:
    """What `mfmarl train --diagnose` found, where there is something."""
    try:
        table = json.loads((path / "diagnosis.json").read_text(encoding="utf-8"))
        rows = [
            [
                name,
                *(f"{one[key]['value']:.4g} ± {one[key]['error']:.2g}" for key in _DIAGNOSED),
                f"{one['autocorrelation_time']:.3g}",
                f"{one['gibbs']['entropy']:.4g}",
                f"{one['gibbs']['heat_capacity']:.4g}",
            ]
            for name, one in table["players"].items()
        ]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return (
            f"<section><h2>Diagnosis</h2><p class='bad'>diagnosis.json is damaged: {escape(str(error))}</p></section>"
        )
    headings = ["player", *_DIAGNOSED.values(), "memory of m, steps", "entropy per agent", "heat capacity per agent"]
    text = (
        "Policies frozen. Fluctuations (N Var m / T) and the answer to a small incentive (dm/dh) agree in equilibrium; "
        "a ratio away from 1 tells of moves without detailed balance, or of a population that still remembers its start. "
        "Both peak where it is about to change its mind. m is the combination of action shares that fluctuates most."
    )
    return f"<section><h2>Diagnosis</h2><p>{text}</p>{html_table(headings, rows, range(1, len(headings)))}</section>"


_DIAGNOSED = {"order": "|m|", "susceptibility": "χ = N Var m / T", "response": "dm/dh", "violation": "ratio"}


def report_tournament(path: Path) -> Path:
    """Write `report.html` and figures of a folder with `tournament.json`; returns the page."""
    from mfmarl.evaluation import elo, figures

    players, matches, about = elo.read_tournament(path)
    found = elo.standings(players, matches)
    title = str(about.get("name") or path.resolve().name)
    order = sorted(range(len(players)), key=lambda k: -found.rating[k])
    rows = [
        [players[k], f"{found.rating[k]:.0f}", f"[{found.low[k]:.0f}, {found.high[k]:.0f}]", _points(found, k)]
        for k in order
    ]
    unit = (
        f"{found.runs} trained runs each"
        if found.runs > 1
        else "each trained once, so the intervals are over games only"
    )
    body = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>{escape(players[order[0]])} leads {len(players)} players "
        f"after {found.games.sum() / 2:.0f} games ({unit}).</p></header>",
        "<section>",
        html_table(["player", "Elo", "95 % interval", "points"], rows, numbers=(1, 2, 3)),
        html_figure(path, "elo", figures.elo(found), "Elo ratings by maximum likelihood, mean 1500."),
        html_figure(path, "win_matrix", figures.win_matrix(found), "Points per game, ties counting half to each side."),
        "</section>",
        _pictures(path),
        _settings([], about),
        html_repeat(str(about.get("command", ""))),
    ]
    return write_text(path / "report.html", html_page(title, body))


def _points(found: Any, player: int) -> str:
    return f"{found.points[player].sum():g} of {found.games[player].sum():g}"


def _lead(comparison: Comparison, table: dict[str, Any]) -> str:
    several = len(comparison.environments) > 1
    lines = []
    for environment, about in table["environments"].items():
        verdicts = [pair["verdict"] for pair in about["pairs"]] or [""] * len(about["sentences"])
        for sentence, verdict in zip(about["sentences"], verdicts, strict=True):
            where = f"<strong>{escape(environment)}</strong>: " if several else ""
            sign = _SIGNS.get(verdict, "·")
            lines.append(f"<li><span class='sign' aria-hidden='true'>{sign}</span>{where}{escape(sentence)}</li>")
    runs = f"{table['runs']} runs of {len(comparison.agents)} agents" + (
        f" in {len(comparison.environments)} environments" if several else f" on {escape(comparison.environments[0])}"
    )
    broken = f", <span class='bad'>{table['failed_runs']} failed</span>" if table["failed_runs"] else ""
    states = ", ".join(f"{n} {state}" for state, n in table["runs_by_state"]["counts"].items() if n)
    notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in table["notes"])
    return f"<p class='lead'>{runs}{broken} ({escape(states)}).</p><ul class='verdicts'>{''.join(lines)}</ul>{notes}"


def _environment(comparison: Comparison, table: dict[str, Any], environment: str) -> str:
    from mfmarl.evaluation import figures

    about = table["environments"][environment]
    stem = drawing.file_name(environment)
    parts = [f"<section><h2>{escape(environment)}</h2>", _scores(comparison, about)]
    if any(a["runs"] for a in about["agents"].values()):
        parts.append(
            html_figure(
                comparison.path,
                f"curves_{stem}",
                figures.learning_curves(comparison, environment),
                f"Learning curves: {about['score']}, interquartile mean over runs with its 95 % band."
                + _sources(comparison, environment, about["score"]),
            )
        )
    films = {
        f"population_{results.folder_name(environment)}_{results.folder_name(agent)}": agent
        for agent in comparison.agents
    }
    parts.append(_pictures(comparison.path, films))
    measures = {m: known["column"] for m, known, _ in summary.theory_rows(about)}
    # One of many alike (share/0, share/1, ...) has its line in the table and in the figure against theory only.
    curves = [(m, column) for m, column in measures.items() if "/" not in m and column != about["score"]]
    for measure, column in curves[:MOST_CURVES]:
        parts.append(
            html_figure(
                comparison.path,
                f"curves_{stem}_{drawing.file_name(measure)}",
                figures.learning_curves(comparison, environment, column),
                f"{column}, as the agents learn." + _sources(comparison, environment, measure),
            )
        )
    if any(a["runs"] for a in about["agents"].values()):
        parts.append(
            html_figure(
                comparison.path,
                f"intervals_{stem}",
                figures.intervals(comparison, environment),
                "Every run, and what the runs of each agent say together.",
            )
        )
    return "".join(parts) + "</section>"


def _sources(comparison: Comparison, environment: str, measure: str) -> str:
    """What the dashed lines are, and where they come from."""
    name = measure.partition("/")[2] if measure.startswith(("eval/", "train/")) else measure
    told = [
        f"{called} {summary.number(known.value)} ({known.source})"
        for known, called in comparison.laws(environment, name)
    ]
    return f" Dashed: {'; '.join(told)}." if told else ""


def _scores(comparison: Comparison, about: dict[str, Any]) -> str:
    looks = drawing.styles(comparison.agents, comparison.independent)
    headings = [
        "agent",
        f"{about['score']}, 95 % interval",
        "runs",
        "P(improvement)",
        "wall",
        "CPU",
        "agent-steps/s",
    ]
    rows = []
    for name, agent in about["agents"].items():
        pair = next((p for p in about["pairs"] if p["first"] == name and p["improvement"]), None)
        chance = ""
        if pair:
            i = pair["improvement"]
            chance = f"{i['value']:.2f} [{i['low']:.2f}, {i['high']:.2f}] over {pair['second']}"
        rows.append(
            [
                Mark(name, looks[name].colour, looks[name].filled),
                summary.measured_text(agent["iqm"], agent["low"], agent["high"]) if agent["runs"] else "failed",
                summary.runs_text(agent),
                chance,
                summary.duration(agent["wall"]),
                summary.duration(agent["cpu"]),
                summary.count(agent["agent_steps_per_second"]),
            ]
        )
    scores = html_table(headings, rows, numbers=range(1, len(headings))) + _gaps(about)
    known = summary.theory_rows(about)
    if not known:
        return scores
    lines = [[m, answer["text"], *(cell or "–" for cell in cells)] for m, answer, cells in known]
    headings = ["distance to theory", "known", *about["agents"]]
    note = (
        "<p class='note'>Distance of the runs' mean from the known answer, ± half its 95 % interval; "
        "where a temperature falls, of the steps within a tenth of its end.</p>"
    )
    return scores + html_table(headings, lines, numbers=range(1, len(headings))) + note


def _gaps(about: dict[str, Any]) -> str:
    rows = summary.gap_rows(about)
    if not rows:
        return ""
    headings = ["exploitability", *summary.GAPS.values()]
    note = (
        "<p class='note'>What one agent could gain by leaving the policy of the end of a run, all others keeping it: of "
        "infinitely many it sees no fluctuations and moves nobody; at the run's own N it sees everybody, and counts. "
        "0 at an equilibrium, and nowhere else.</p>"
    )
    return html_table(headings, [[name, *cells] for name, cells in rows], numbers=(1, 2)) + note


def _across(comparison: Comparison, table: dict[str, Any]) -> str:
    from mfmarl.evaluation import figures

    parts = []
    if any(a["theory"] for e in table["environments"].values() for a in e["agents"].values()):
        parts.append(
            html_figure(
                comparison.path,
                "theory",
                figures.theory(comparison),
                "Time averages beside the known answers.",
            )
        )
    option = figures.varied_option(comparison)
    for measure in (
        dict.fromkeys(m for e in comparison.environments for m in comparison.references(e)) if option else ()
    ):
        parts.append(
            html_figure(
                comparison.path,
                f"order_{drawing.file_name(measure)}",
                figures.order_parameter(comparison, measure, option),
                f"{measure} as {option} varies.",
            )
        )
    if any(p["improvement"] for e in table["environments"].values() for p in e["pairs"]):
        parts.append(
            html_figure(
                comparison.path,
                "improvement",
                figures.improvement(comparison, table),
                "Above one half the first of the two is the better; 0.5 is a coin toss.",
            )
        )
    if sum(len(t) for t in summary.pooled(comparison).values()) > 1:
        parts.append(
            html_figure(
                comparison.path,
                "profile",
                figures.profile(comparison),
                "All environments together, each on a scale from its worst run to its best.",
            )
        )
    if table["overall"]:
        headings = ["agent", "interquartile mean", "95 % interval", "runs"]
        rows = [
            [a, summary.number(e["value"], 0.05), summary.interval(e["low"], e["high"]), str(e["runs"])]
            for a, e in table["overall"]["agents"].items()
        ]
        parts.append(
            html_table(headings, rows, numbers=(1, 2, 3)) + f"<p class='note'>{escape(table['overall']['scale'])}.</p>"
        )
    return f"<section><h2>All together</h2>{''.join(parts)}</section>" if parts else ""


def _failures(table: dict[str, Any]) -> str:
    rows = [
        [environment, agent, seed, error]
        for environment, about in table["environments"].items()
        for agent, found in about["agents"].items()
        for seed, error in found["errors"].items()
    ]
    parts = []
    if rows:
        heads = ["environment", "agent", "seed", "what happened"]
        parts.append(f"<h2 class='bad'>Failed runs</h2>{html_table(heads, rows)}")
    odd = [c for c in table["runs_by_state"]["cells"] if c["state"] != "failed"]
    if odd:
        lines = [[c["environment"], c["agent"], str(c["seed"]), c["state"], str(c["step"]), c["reason"]] for c in odd]
        heads = ["environment", "agent", "seed", "state", "step", "why"]
        parts.append(f"<h2>Runs that are not simply done</h2>{html_table(heads, lines, numbers=(4,))}")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _method(comparison: Comparison, table: dict[str, Any]) -> str:
    fate = "counts as the worst run seen in its environment" if comparison.failed == "worst" else "is left out"
    fate += ", and below that one where only order counts" if comparison.failed == "worst" else ""
    return (
        "<section><h2>How to read this</h2><p>The score of a run is the mean of its rows after "
        f"{table['burn_in']:.0%} of its steps, never its best moment. A run is one sample, however many agents live in it. "
        "The interquartile mean is the mean of the middle half of the runs; its 95 % interval comes from a stratified bootstrap with "
        "a t quantile, which covers as often as it says from three runs on (percentiles of the bootstrap do not). Differences "
        "are taken between runs of the same seed. Verdicts are Holm-corrected over all comparisons on this page, so "
        f"the chance of any false one is 5 %. A failed run {fate}. Agent-steps per second are of wall time, evaluation included; "
        "times are medians over runs.</p></section>"
    )


def _settings(runs: Sequence[Run], plan: dict[str, Any]) -> str:
    versions: dict[str, str] = {}
    for table in [plan.get("versions"), *(r.config.get("versions") for r in runs)]:
        if isinstance(table, dict):
            versions |= {str(k): str(v) for k, v in table.items()}
    shown: dict[str, set[str]] = {}
    for run in runs:
        for table in ("run", "environment", "agents"):
            for key, value in _flat(run.config.get(table), table):
                if key != "run.seed":
                    shown.setdefault(key, set()).add(value)
    rows = [
        [key, " | ".join(sorted(values)[:6]) + (" | …" if len(values) > 6 else "")] for key, values in shown.items()
    ]
    settings = html_table(["setting", "value"], rows) if rows else ""
    listed = ", ".join(f"{escape(k)} {escape(v)}" for k, v in versions.items()) or f"mfmarl {__version__}"
    return f"<section><h2>Settings and versions</h2><p>{listed}.</p><details><summary>All settings</summary>{settings}</details></section>"


def _flat(value: Any, prefix: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}")
    elif value is not None:
        yield prefix, json.dumps(value, default=str) if isinstance(value, list) else str(value)


def _repeat(comparison: Comparison) -> str:
    told = comparison.plan.get("command")
    if isinstance(told, list):
        told = " ".join(str(word) for word in told)
    if not told:
        environments, agents = ",".join(comparison.environments), ",".join(comparison.agents)
        told = f"mfmarl compare {environments} --agents {agents} --seeds {len(comparison.seeds)}"
    return html_repeat(str(told))


def html_repeat(text: str) -> str:
    return f"<section><h2>How to repeat it</h2><pre><code>{escape(text)}</code></pre></section>" if text else ""


class Mark(str):
    """A cell of a table with the mark of an agent before its name."""

    colour: str
    filled: bool

    def __new__(cls, text: str, colour: str, filled: bool) -> Mark:
        made = super().__new__(cls, text)
        made.colour, made.filled = colour, filled
        return made


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cell(tag: str, place: int, text: str) -> str:
        mark = ""
        if isinstance(text, Mark):
            fill = text.colour if text.filled else "none"
            mark = f"<svg class='mark' viewBox='0 0 10 10' aria-hidden='true'><circle cx='5' cy='5' r='3.8' fill='{fill}' stroke='{text.colour}' stroke-width='1.8'/></svg>"
        bad = " bad" if "failed" in text and tag == "td" and place in right else ""
        kind = f" class='{'number' if place in right else ''}{bad}'" if place in right or bad else ""
        return f"<{tag}{kind}>{mark}{escape(str(text))}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(headings))
    body = "".join("<tr>" + "".join(cell("td", i, c) for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def html_figure(folder: Path, stem: str, figure: Figure, caption: str) -> str:
    """Save a figure under `figures/` and give it as HTML, in the page's own colours."""
    svg, _ = drawing.save(figure, folder / "figures" / stem)
    return f"<figure>{_inline(svg.read_text(encoding='utf-8'), caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _inline(svg: str, title: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, count=1, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    head = re.match(r"<svg[^>]*>", body)
    box = re.search(r'viewBox="([-\d. ]+)"', head.group(0)) if head else None
    if head is None or box is None:
        raise ConfigError("A figure is not SVG as matplotlib writes it; expected a viewBox.")
    for colour, name in (
        (drawing.INK, "ink"),
        (drawing.SOFT, "soft"),
        (drawing.GRID, "grid"),
        (drawing.PAPER, "paper"),
    ):
        body = body.replace(colour, f"var(--{name})")
    width = float(box.group(1).split()[2])
    opening = (
        f"<svg role='img' aria-label='{escape(title, quote=True)}' viewBox='{box.group(1)}' "
        f"style='max-width: {width * 1.5:.0f}px' xmlns:xlink='http://www.w3.org/1999/xlink'>"
    )
    return opening + body[head.end() :]


def _pictures(folder: Path, captions: dict[str, str] | None = None) -> str:
    """The pictures and films of populations under `figures/`, by file stem; None: whatever there is."""
    shelf = folder / "figures"
    if captions is None:
        stems = sorted({p.stem for p in shelf.glob("population*")})
        captions = {s: s.removeprefix("population").strip("_").replace("_", " ") or "the population" for s in stems}
    parts = []
    for stem, caption in captions.items():
        kinds = [shelf / f"{stem}{kind}" for kind in _TYPES]
        there = [p for p in kinds if p.is_file() and not p.is_symlink()]
        chosen = next((p for p in there if p.stat().st_size <= LARGEST_PICTURE), None)
        words = escape(caption, quote=True)
        if chosen is not None:
            data = base64.b64encode(chosen.read_bytes()).decode()
            image = f"<img alt='The population: {words}' src='data:{_TYPES[chosen.suffix]};base64,{data}'>"
            parts.append(f"<figure class='picture'>{image}<figcaption>{words}</figcaption></figure>")
        elif there:
            where = escape(f"figures/{there[0].name}")
            parts.append(f"<figure class='picture'><figcaption>{words}: too large, see {where}</figcaption></figure>")
    return f"<h3>The population</h3><div class='pictures'>{''.join(parts)}</div>" if parts else ""


_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters (a terminal's colours in an error, say), what turns the direction of writing, halves of characters."""


def html_page(title: str, body: Iterable[str]) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    text = "".join(body)
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'><meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{text}"
        f"<footer>mfmarl {escape(__version__)}</footer></main></body></html>\n"
    )
    return _NO_TEXT.sub("�", page)
