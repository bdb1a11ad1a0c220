"""The page of a solved game: what was found, how surely, and what it looks like. It needs the folder and no code."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mfmarl.errors import CheckpointError, ConfigError
from mfmarl.evaluation import solved, summary
from mfmarl.evaluation.results import folder_name, write_text
from mfmarl.evaluation.solve_config import SolveConfig
from mfmarl.evaluation.solved import Outcome, SavedPolicy, best_of
from mfmarl.learning import run_folder

_SAME = 0.01  # total variation, averaged over times, below which two crowds are told as one
_UNLIKE = 0.05  # the same, above which both are drawn
_SHOWN = 3  # different crowds that are drawn
_LARGEST = 12_000_000  # bytes of a film that is taken into the page


@dataclass(frozen=True)
class SolvedGame:
    """Everything in the folder of a solved game."""

    path: Path
    config: SolveConfig
    about: dict[str, Any]
    outcomes: list[Outcome]
    rows: dict[str, list[dict[str, Any]]]
    policies: dict[str, SavedPolicy]
    status: dict[str, Any]
    versions: dict[str, Any]

    @property
    def game(self) -> str:
        return self.config.environment.name.rpartition(".py:")[2] or self.config.environment.name

    @property
    def best(self) -> Outcome:
        return best_of(self.outcomes)

    def unlike(self, label: str, other: str) -> float:
        """How far the crowds of two solvers are from each other: total variation, averaged over times and groups."""
        one, two = (self.policies[x].mu.double().numpy() for x in (label, other))
        return float(np.abs(one - two).sum(-1).mean() / 2)


def read_solved(path: Path) -> SolvedGame:
    """The solved game in that folder. Raises ConfigError and CheckpointError."""
    path = Path(path)
    if not solved.is_solved(path):
        raise ConfigError(f"There is no solved game in {path}.")
    table = run_folder.read_config(path)
    outcomes = solved.read_outcomes(path) if (path / solved.SOLUTION).is_file() else []
    rows: dict[str, list[dict[str, Any]]] = {o.label: [] for o in outcomes}
    for row in run_folder.read_metrics(path):
        rows.setdefault(str(row.get("solver")), []).append(row)
    told_of = {o.label for o in outcomes}
    outcomes += [_killed(label, seen) for label, seen in rows.items() if label not in told_of and seen]
    policies = {}
    for outcome in outcomes:
        file = path / solved.POLICIES / outcome.file
        if file.is_file():
            policies[outcome.label] = solved.load_policy(file)
    about = solved.read_table(path / "game.json")
    missing = {"groups", "states", "actions", "agents", "horizon", "grid", "cells", "known"} - set(about)
    if missing:
        raise CheckpointError(f"{path}/game.json is damaged: it has no {sorted(missing)[0]!r}.")
    return SolvedGame(
        path,
        SolveConfig.from_table(table, str(path)),
        about,
        outcomes,
        rows,
        policies,
        run_folder.read_status(path),
        table.get("versions", {}),
    )


def _killed(label: str, rows: list[dict[str, Any]]) -> Outcome:
    """What the rows tell of a solver whose process died before it could."""
    best = min(rows, key=lambda row: row.get("exploitability", math.inf))
    return Outcome(
        label,
        "interrupted",
        "killed",
        "It was ended from outside: its curve is kept, its policy is not.",
        exploitability=float(best.get("exploitability", math.nan)),
        uniform=float(rows[0].get("exploitability", math.nan)),
        value=float(best.get("value", math.nan)),
        iterations=int(rows[-1].get("iteration", 0)),
        seconds=float(rows[-1].get("seconds", math.nan)),
        file=f"{folder_name(label)}.safetensors",
    )


# Sentences


def horizon_text(about: dict[str, Any]) -> str:
    """What the unit of a reward is summed over."""
    if not about["horizon"]:
        return f"discounted reward, factor {about.get('discount', 1):g}"
    decisions = "one decision" if about["horizon"] == 1 else f"{about['horizon']} decisions"
    factor = about.get("discount", 1)
    return f"reward over {decisions}" + (f", discounted by {factor:g}" if factor != 1 else "")


def gain(value: float) -> str:
    """An exploitability as text; what is nothing but rounding is called 0."""
    return "–" if not math.isfinite(value) else ("0" if abs(value) < 1e-15 else f"{value:.3g}".replace("e-0", "e-"))


def sentence(outcome: Outcome, about: dict[str, Any]) -> str:
    """What one solver came to, in a sentence or two."""
    if not math.isfinite(outcome.exploitability):
        return f"{outcome.label}: {outcome.told or 'nothing was found.'}"
    spent = f"after {outcome.iterations:,} iterations, {summary.duration(outcome.seconds)}"
    if outcome.cooperative:
        found = (
            f"{outcome.label} plans for all: value {summary.number(outcome.value)} {spent}. It seeks no equilibrium; an agent "
            f"that leaves the plan gains {gain(outcome.exploitability)}."
        )
    else:
        share = outcome.exploitability / outcome.uniform if outcome.uniform > 1e-12 else math.nan
        of_uniform = f", {_share(share)} of the {gain(outcome.uniform)} at the start" if math.isfinite(share) else ""
        found = f"{outcome.label}: an agent that leaves the policy gains {gain(outcome.exploitability)}{of_uniform}, {spent}."
        if math.isfinite(outcome.regularised):
            found += (
                f" Of agents regularised at temperature {outcome.temperature:g} it gains {gain(outcome.regularised)}: "
                "that is what this solver makes small."
            )
    return f"{found} {ending(outcome)}".strip()


def ending(outcome: Outcome) -> str:
    """How a solver ended."""
    told = {
        "tolerance": "Settled: below the tolerance." if outcome.iterations else "It began in an equilibrium.",
        "iterations": "" if outcome.told else "All iterations were spent.",
        "time": "Its time was spent.",
    }.get(outcome.stopped, "")
    return f"{told} {outcome.told}".strip()


def _share(ratio: float) -> str:
    return f"{100 * ratio:.2g} %" if ratio >= 1e-4 else f"{ratio:.1e}".replace("e-0", "e-")


def finite_sentence(outcome: Outcome) -> str:
    """The gain of one of N agents, beside the limit's."""
    found = outcome.finite
    agents, at = int(found.get("agents") or 0), int(found.get("at") or 0)
    counted, learned = _number(found.get("gain")), _number(found.get("learned"))
    parts = []
    if not math.isnan(counted):
        how = "that sees where the others are" if found.get("sees") == "crowd" else "that sees its own state alone"
        parts.append(f"among {at:,} agents one {how} gains {gain(counted)}, exactly")
    if not math.isnan(learned):
        error = _number(found.get("error"))
        bound = "" if parts else " who play the policy"
        parts.append(
            f"among {agents:,}{bound}, one with a learned best response gains {gain(learned)} ± {gain(error)} (a lower "
            "bound and its standard error)"
        )
    limit = f"{outcome.label}: of infinitely many agents one gains {gain(outcome.exploitability)}"
    if not parts:
        return f"{limit}; what one of {agents:,} gains is another number, and not known here: {found.get('told') or 'it was not worked out'}."
    return f"{limit}; {'; '.join(parts)}."


def finite_cell(outcome: Outcome) -> str:
    """The same as a cell of a table: exact at the game's own N, else the bound that was learned there, else at fewer."""
    found = outcome.finite
    counted, learned = _number(found.get("gain")), _number(found.get("learned"))
    if not math.isnan(counted) and found.get("at") == found.get("agents"):
        return gain(counted)
    if not math.isnan(learned):
        return f"≥ {gain(learned)} ± {gain(_number(found.get('error')))}"
    return "not known" if math.isnan(counted) else f"{gain(counted)} (of {found.get('at'):,})"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


# The page


def report_solved(path: Path) -> Path:
    """Write `report.html`, `figures/*.svg|png` and the film of a solved game; returns the page."""
    from mfmarl.evaluation.report import html_page

    found = read_solved(path)
    title = f"{found.game}: its equilibrium" if len(found.outcomes) < 2 else f"{found.game}: ways to its equilibrium"
    body = [f"<header><h1>{escape(title)}</h1>{_lead(found)}</header>"]
    if found.outcomes:
        body += [_pictures(found), _curves(found), _table(found), _known(found), _method(found)]
    body.append(_settings(found))
    return write_text(found.path / "report.html", html_page(title, body))


def _lead(found: SolvedGame) -> str:
    about = found.about
    what = f"{about.get('title') or found.game}: {about['states']:,} states, {about['actions']} actions, {horizon_text(about)}."
    state = found.status["state"]
    broken = "" if state == "done" else f" <span class='bad'>{escape(state)}</span>"
    if not found.outcomes:
        return f"<p class='lead'>{escape(what)}{broken}</p><p>{escape(found.status['error'])}</p>"
    best = found.best
    points = [(_sign(o), sentence(o, about)) for o in found.outcomes]
    if math.isfinite(best.exploitability):
        points.append(("N", finite_sentence(best)))
    points += [("·", text) for text in _agreement(found)]
    lines = "".join(
        f"<li><span class='sign' aria-hidden='true'>{sign}</span>{escape(text)}</li>" for sign, text in points
    )
    return f"<p class='lead'>{escape(what)}{broken}</p><ul class='verdicts'>{lines}</ul>"


def _sign(outcome: Outcome) -> str:
    if outcome.state in ("failed", "diverged"):
        return "✕"
    return "✓" if outcome.stopped == "tolerance" else "·"


def _agreement(found: SolvedGame) -> list[str]:
    """Whether the solvers came to one crowd."""
    others = [o.label for o in found.outcomes if o.label in found.policies and o.label != found.best.label]
    if found.best.label not in found.policies or not others:
        return []
    apart = {label: found.unlike(found.best.label, label) for label in others}
    far = [label for label, d in apart.items() if d >= _SAME]
    if not far:
        return [f"All come to the same crowd: they differ by at most {_share(max(apart.values()))} of the agents."]
    told = ", ".join(f"{label} by {100 * apart[label]:.2g} % of the agents" for label in far)
    return [f"Other crowds than that of {found.best.label}: {told}."]


def _layout(found: SolvedGame) -> Any:
    from mfmarl.evaluation.equilibrium_figures import Layout

    about = found.about
    return Layout(
        [str(g) for g in about["groups"]],
        int(about["states"]),
        int(about["actions"]),
        [int(n) for n in about["grid"]],
        [int(n) for n in about["cells"]],
        [str(n) for n in about.get("state_names", [])],
        [str(n) for n in about.get("action_names", [])],
    )


def _different(found: SolvedGame) -> list[str]:
    """The best solver and those that came to other crowds."""
    if found.best.label not in found.policies:
        return []
    kept = [found.best.label]
    for outcome in found.outcomes:
        if (
            outcome.label in found.policies
            and len(kept) < _SHOWN
            and all(found.unlike(outcome.label, k) >= _UNLIKE for k in kept)
        ):
            kept.append(outcome.label)
    return kept


def _pictures(found: SolvedGame) -> str:
    from mfmarl.evaluation import drawing, equilibrium_figures
    from mfmarl.evaluation.films import write_gif, write_png
    from mfmarl.evaluation.report import html_figure

    layout, parts = _layout(found), []
    for place, label in enumerate(_different(found)):
        saved, stem = found.policies[label], drawing.file_name(label)
        of = f" of {label}" if len(found.outcomes) > 1 else ""
        inner = []
        frames = equilibrium_figures.film(saved, layout)
        if frames:
            figures = found.path / "figures"
            figures.mkdir(exist_ok=True)
            gif = write_gif(frames, figures / f"crowd_{stem}.gif", max(4.0, min(20.0, len(frames) / 4)))
            write_png(frames[-1], figures / f"crowd_{stem}_last.png")
            groups = f" ({', '.join(layout.groups)})" if len(layout.groups) > 1 else ""
            inner.append(_film(gif, f"The crowd{of} in time{groups}"))
        figure = equilibrium_figures.crowd(saved, layout, f"The crowd{of}")
        inner.append(html_figure(found.path, f"crowd_{stem}", figure, f"The crowd that the policy{of} makes."))
        figure = equilibrium_figures.policy(saved, layout, f"The policy{of}")
        inner.append(html_figure(found.path, f"policy_{stem}", figure, f"What agents do under the policy{of}."))
        text = "".join(inner)
        parts.append(f"<details><summary>The crowd{escape(of)}</summary>{text}</details>" if place else text)
    return f"<section><h2>The crowd and its policy</h2>{''.join(parts)}</section>" if parts else ""


def _film(gif: Path, caption: str) -> str:
    words = escape(caption, quote=True)
    if gif.stat().st_size > _LARGEST:
        return f"<p class='note'>{words}: too large for the page, see figures/{escape(gif.name)}.</p>"
    data = base64.b64encode(gif.read_bytes()).decode()
    return (
        f"<div class='pictures'><figure class='picture'><img alt='{words}' src='data:image/gif;base64,{data}'>"
        f"<figcaption>{words}</figcaption></figure></div>"
    )


def _curves(found: SolvedGame) -> str:
    from mfmarl.evaluation import equilibrium_figures
    from mfmarl.evaluation.report import html_figure

    drawn = [o for o in found.outcomes if any(r.get("iteration", 0) > 0 for r in found.rows.get(o.label, []))]
    if not drawn:
        return ""
    tolerance = found.config.solve.tolerance
    figure = equilibrium_figures.exploitability(found.rows, found.outcomes, tolerance)
    text = "How much an agent of infinitely many gains by leaving, at each look; both axes are logarithmic."
    parts = [html_figure(found.path, "exploitability", figure, text)]
    if len(drawn) > 1:
        figure = equilibrium_figures.exploitability(found.rows, found.outcomes, tolerance, "seconds")
        parts.append(
            html_figure(found.path, "exploitability_seconds", figure, "The same against wall time, looks included.")
        )
    potential = [o.label for o in drawn if any("free_energy" in r for r in found.rows[o.label])]
    if potential:
        figure = equilibrium_figures.free_energy(found.rows, potential)
        parts.append(
            html_figure(
                found.path,
                "free_energy",
                figure,
                "This game has a potential: its free energy is what learning descends.",
            )
        )
    return f"<section><h2>How the solvers came down</h2>{''.join(parts)}</section>"


def _table(found: SolvedGame) -> str:
    from mfmarl.evaluation.equilibrium_figures import colours_of
    from mfmarl.evaluation.report import Mark, html_table

    colours = colours_of([o.label for o in found.outcomes])
    headings = ["solver", "exploitability, limit", f"gain of one of {found.about['agents']:,}", "of the start's"]
    headings += ["value", "iterations", "time", "ended"]
    rows = []
    for o in found.outcomes:
        rows.append(
            [
                Mark(o.label, colours[o.label], True),
                gain(o.exploitability),
                finite_cell(o),
                _share(o.exploitability / o.uniform) if o.uniform > 1e-12 and math.isfinite(o.exploitability) else "–",
                summary.number(o.value),
                f"{o.iterations:,}",
                summary.duration(o.seconds),
                o.stopped or o.state,
            ]
        )
    return f"<section><h2>Numbers</h2>{html_table(headings, rows, numbers=range(1, len(headings) - 1))}</section>"


def _known(found: SolvedGame) -> str:
    from mfmarl.evaluation.report import html_table

    known, measured = found.about["known"], found.best.measures
    rows = []
    for name in dict.fromkeys([*known, *measured]):
        answer = known.get(name)
        value = measured.get(name, math.nan)
        value = math.nan if value is None else value
        if answer is None and "/" in name:
            continue
        law = answer["value"] if answer else math.nan
        apart = abs(value - law)
        rows.append(
            [
                name,
                summary.number(value),
                summary.number(law) if answer else "–",
                gain(apart) if math.isfinite(apart) else "–",
                f"{answer['kind']}; {answer['source']}" if answer else "",
            ]
        )
    if not rows:
        return ""
    note = f"<p class='note'>Means over time of infinitely many agents that play the policy of {escape(found.best.label)}.</p>"
    table = html_table(["measure", "of this policy", "known", "apart", "kind and source"], rows, numbers=(1, 2, 3))
    return f"<section><h2>Against known answers</h2>{table}{note}</section>"


def _method(found: SolvedGame) -> str:
    return (
        "<section><h2>How to read this</h2><p>Exploitability is what one agent of infinitely many gains by its best way of "
        "leaving the policy while all others keep it, worked out by backward induction along the policy's own flow and summed "
        f"over groups; its unit is {escape(horizon_text(found.about))}. Zero is a Nash equilibrium. It says nothing about N "
        "agents, where one may watch the others' chance: their gain is another number, and stands beside it. The policy kept "
        "is the best that was looked at. Times include looking.</p></section>"
    )


def _settings(found: SolvedGame) -> str:
    from mfmarl.evaluation.report import html_repeat, html_table

    rows = []
    for table, values in found.config.to_table().items():
        for key, value in values.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            rows += [[".".join(x for x in (table, key, k) if x), str(v)] for k, v in inner]
    listed = ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in found.versions.items())
    settings = f"<details><summary>All settings</summary>{html_table(['setting', 'value'], rows)}</details>"
    again = html_repeat(f"mfmarl solve --config {found.path / 'config.toml'}")
    return f"<section><h2>Settings and versions</h2><p>{listed}.</p>{settings}</section>{again}"


def summary_of(found: SolvedGame) -> dict[str, Any]:
    """The numbers of the page as one JSON object."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    solvers = {o.label: {k: plain(v) for k, v in vars(o).items() if k != "label"} for o in found.outcomes}
    return {"game": found.game, "best": found.best.label if found.outcomes else None, "solvers": solvers}
