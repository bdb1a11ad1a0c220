"""Iterations of mfglib and OpenSpiel on the games that bench_games.py times: run by a Python that has them.

    .venv-peers/bin/python scripts/bench/peer_games.py

Reads one request a line on standard input, {"peer", "game", "iterations"}, and answers with one line, CPU-seconds per
iteration of online mirror descent and per evaluation of the exploitability, least of the iterations asked for;
with {"reach": level, "seconds": limit}, the CPU-seconds until the best of the peer's algorithms is below that level.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

_WHOLE = 3000  # times, states and actions up to which solvers that only run as a whole are asked: minutes beyond
Step = Callable[[], None]
Score = Callable[[], float]


def mfglib_game(name: str) -> Any:
    import torch
    from mfglib.env import Environment

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    makers: dict[str, Callable[[], Any]] = {
        "beach_bar": lambda: Environment.beach_bar(T=7, n=10, bar_loc=3),
        "building_evacuation": Environment.building_evacuation,
        "conservative_treasure_hunting": Environment.conservative_treasure_hunting,
        "crowd_motion": Environment.crowd_motion,
        "equilibrium_price": Environment.equilibrium_price,
        "left_right": Environment.left_right,
        "linear_quadratic": lambda: Environment.linear_quadratic(T=15, el=25, m=5),
        "random_linear": Environment.random_linear,
        "rock_paper_scissors": Environment.rock_paper_scissors,
        "susceptible_infected": lambda: Environment.susceptible_infected(T=50),
    }
    return makers[name]()


def mfglib_solvers() -> Iterator[tuple[str, Any]]:
    from mfglib.alg import MFOMO, FictitiousPlay, OccupationMeasureInclusion, OnlineMirrorDescent, PriorDescent

    for rate in (0.01, 0.1, 1.0, 10.0):
        yield f"omd {rate}", OnlineMirrorDescent(rate)
    yield "fp", FictitiousPlay()
    yield "damped fp 0.5", FictitiousPlay(alpha=0.5)
    for eta in (0.1, 1.0):
        yield f"prior descent {eta}", PriorDescent(eta, 20)
    yield "omi", OccupationMeasureInclusion(alpha=0.1)
    yield "mf-omo", MFOMO()


def mfglib_run(env: Any, solver: Any) -> tuple[Step, Score]:
    import torch
    from mfglib.scoring import exploitability_score

    pi = torch.ones((env.T + 1, *env.S, *env.A)) / env.n_actions
    state = [solver.init_state(env, pi)]

    def step() -> None:
        state[0] = solver.step_next_state(state[0], None, None)

    return step, lambda: float(exploitability_score(env, state[0].pi))


def openspiel_game(name: str) -> Any:
    from open_spiel.python.mfg.games import factory

    if name == "four_rooms":
        return factory.create_game_with_setting("mfg_crowd_modelling_2d", "crowd_modelling_2d_four_rooms")
    if name == "predator_prey":
        return factory.create_game_with_setting("python_mfg_predator_prey", "predator_prey_5x5x3")
    return factory.create_game_with_setting("mfg_crowd_modelling", None)


def openspiel_solvers(game: Any) -> Iterator[tuple[str, Any]]:
    from open_spiel.python.mfg.algorithms import fictitious_play, mirror_descent, munchausen_mirror_descent

    for rate in (0.1, 1.0):
        yield f"omd {rate}", mirror_descent.MirrorDescent(game, lr=rate)
        yield f"momd {rate}", munchausen_mirror_descent.MunchausenMirrorDescent(game, lr=rate)
    yield "fp", fictitious_play.FictitiousPlay(game)


def openspiel_run(game: Any, solver: Any) -> tuple[Step, Score]:
    from open_spiel.python.mfg.algorithms import nash_conv

    return solver.iteration, lambda: float(nash_conv.NashConv(game, solver.get_policy()).nash_conv())


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.process_time()
    found = run(*arguments)
    return time.process_time() - started, found


def prepared(peer: str, name: str) -> tuple[Any, Iterator[tuple[str, Any]], Callable[[Any, Any], tuple[Step, Score]]]:
    if peer == "mfglib":
        return mfglib_game(name), mfglib_solvers(), mfglib_run
    game = openspiel_game(name)
    return game, openspiel_solvers(game), openspiel_run


def per_iteration(peer: str, name: str, iterations: int) -> dict[str, Any]:
    game, solvers, make = prepared(peer, name)
    # The second rate of mfglib and the first of OpenSpiel: 0.1.
    solver = next(s for label, s in solvers if label == "omd 0.1")
    step, score = make(game, solver)
    steps, scores = [], []
    for _ in range(iterations):
        steps.append(timed(step)[0])
        scores.append(timed(score)[0])
    return {"iteration": min(steps), "evaluation": min(scores), "exploitability": score()}


def whole_curve(solver: Any, env: Any, level: float) -> list[float]:
    """Of a solver of mfglib that only runs as a whole."""
    curve: list[float] = solver.solve(env, max_iter=200, atol=level, rtol=None)[1]
    return curve


def reach(peer: str, name: str, level: float, seconds: float) -> dict[str, Any]:
    """The fastest algorithm, counting its iterations alone: evaluations are given for nothing."""
    game, solvers, make = prepared(peer, name)
    best: dict[str, Any] = {"seconds": None, "solver": "none", "least": float("inf")}
    for label, solver in solvers:
        try:
            if peer == "mfglib" and not hasattr(solver, "init_state"):
                if (game.T + 1) * game.n_states * game.n_actions > _WHOLE:
                    continue
                spent, curve = timed(whole_curve, solver, game, level)
                best["least"] = min(best["least"], *curve)
                if curve[-1] <= level and spent < (best["seconds"] or seconds):
                    best |= {"seconds": spent, "solver": label, "iterations": len(curve)}
                continue
            step, score = make(game, solver)
            spent, total, k = 0.0, 0.0, 0
            limit = seconds if best["seconds"] is None else min(seconds, best["seconds"])
            look = 1
            while spent < limit and total < 3 * seconds:
                spent += timed(step)[0]
                k += 1
                if k < look:
                    continue
                look = max(look + 1, int(1.1 * look))
                looking, found = timed(score)
                total = spent + looking
                best["least"] = min(best["least"], found)
                if found <= level:
                    best |= {"seconds": spent, "solver": label, "iterations": k}
                    break
        except (RuntimeError, KeyError, ValueError, AssertionError, TypeError, IndexError) as error:
            best.setdefault("failed", []).append(f"{label}: {type(error).__name__}")
    return best


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "reach" in asked:
            answer = reach(asked["peer"], asked["game"], asked["reach"], asked["seconds"])
        else:
            answer = per_iteration(asked["peer"], asked["game"], asked["iterations"])
        print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
