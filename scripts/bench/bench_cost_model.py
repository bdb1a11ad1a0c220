"""The cost model held against this machine: a sweep's sizes from each other, and two ranks from one.

    python scripts/bench/bench_cost_model.py [--environment ising] [--agent mfq] [--folder runs/cost-model] [--json]

Measures all-reduces between 2 (and 3) processes over loopback; sweeps one agent over sizes, or reads a sweep that is in
the folder; predicts each size from the others; counts what two ranks of one population really send, and predicts the time
of their step from one rank's sweep; and prints what the model says of 10^6 to 4 x 10^9 agents on 1 to 1024 machines.
Times of two ranks mean something only where both have a core to themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from mfmarl.errors import MfmarlError
from mfmarl.evaluation.scaling import collective, cost_model, sweep
from mfmarl.evaluation.scaling.points import Plan, Point
from mfmarl.learning.run_config import Choice, RunConfig

SIZES = (400, 2500, 10_000, 40_000, 160_000, 1_000_000)
POPULATIONS = (10**6, 10**7, 10**8, 10**9, 4 * 10**9)
MACHINES = (1, 4, 16, 64, 256, 1024)


def two_ranks(plan: Plan, point: Point, steps: int, ranks: int = 2) -> dict[str, Any]:
    """Seconds of a step of that point's population divided over ranks, and the bytes that each hands over."""
    from mfmarl.evaluation.scaling.measure import config_of

    order = json.dumps({"config": config_of(point, plan).to_table(), "steps": steps})
    program = (str(Path(__file__).resolve()), "--rank")
    with (
        tempfile.TemporaryDirectory(prefix="mfmarl-") as folder,
        collective.started(ranks, Path(folder) / "store", program) as children,
    ):
        return collective.gather(children, order, 300.0)


def rank(parent: int) -> None:
    """One rank: trains, and tells (the first) what a step took."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    collective.die_with_parent(parent)
    order = json.loads(sys.stdin.readline())
    from mfmarl.learning.build import build
    from mfmarl.population.ranks import join

    ranks = join(timeout=120.0)
    built = build(RunConfig.from_table(order["config"]), ranks)
    for _ in range(6):
        built.training.step()
    before = dict(ranks.sent)
    ranks.agree(False)
    ranks.calls.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(order["steps"]):
        built.training.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sent = {name: size - before.get(name, 0) for name, size in ranks.sent.items()}
    sent["word"] = sent.get("word", 0) - 8  # our own wish above
    if ranks.first:
        told = {"wall": wall / order["steps"], "cpu": cpu / order["steps"], "sent": sent, "calls": dict(ranks.calls)}
        reports.write(json.dumps(told) + "\n")
        reports.flush()
    built.close()
    ranks.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="ising")
    parser.add_argument("--agent", default="mfq")
    parser.add_argument("--folder", type=Path, help="of a sweep, read or made (default: a temporary one)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2, help="ranks that one population is divided over; 0: none")
    parser.add_argument("--steps", type=int, default=20, help="steps of those ranks (default 20)")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, nothing else there")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank is not None:
        rank(given.rank)
        return
    with tempfile.TemporaryDirectory(prefix="mfmarl-") as spare:
        report(given, given.folder or Path(spare) / "sweep")


def report(given: argparse.Namespace, folder: Path) -> None:
    def say(text: str = "") -> None:
        print(text, file=sys.stderr if given.json else sys.stdout, flush=True)

    network = collective.measure(2)
    say(f"all-reduce, 2 ranks here: {1e6 * network.latency:.0f} us a message, {network.bandwidth / 1e9:.2f} GB/s")
    for ranks, size, seconds in (*network.measured, *collective.measure(3, sizes=(1, 65_536)).measured):
        fitted = network.all_reduce(size, ranks)
        say(f"  {ranks} ranks, {size:>9,} bytes: {1e6 * seconds:8.0f} us, the fit {1e6 * fitted:8.0f} us")
    plan = Plan(
        Choice(given.environment), {given.agent: {"all": Choice(given.agent)}}, SIZES, repeats=given.repeats, seeds=()
    )
    if (folder / "scale.json").is_file():
        plan, measured = sweep.read(folder)
    else:
        plan = sweep.write_plan(plan, folder, "bench_cost_model.py")
        measured = sweep.carry_out(plan, folder)
    points = next(p for name, p in cost_model.series(measured).items() if name == given.agent)
    largest = max(p.point.num_agents for p in points)
    load = cost_model.load_of(plan, Point(given.agent, "mfmarl", largest))
    checks = cost_model.held_back(points)
    say("\nsizes held back, predicted from the others")
    for check in checks:
        say(f"  {check.what:8} {check.num_agents:>11,} ({check.where:8}): {check.error:+7.1%}")
    told: dict[str, Any] = {"network": network.to_table(), "held_back": [c.to_table() for c in checks]}
    if given.ranks > 1:
        size = next(n for n in sorted(plan.sizes, reverse=True) if n <= 200_000)
        try:
            real = two_ranks(plan, Point(given.agent, "mfmarl", size), given.steps, given.ranks)
        except MfmarlError as error:
            say(f"\n{given.ranks} ranks: {error}")
        else:
            load = load.sent(real["sent"], given.steps, real["calls"])
            model = cost_model.calibrate(points, network, load)
            guess = model.predict(cost_model.Cluster(agents=size, cores=given.ranks))
            per_step = {name: size / given.steps for name, size in real["sent"].items()}
            say(f"\n{given.ranks} ranks of {size:,} agents: {1e3 * real['wall']:.2f} ms a step ({1e3 * real['cpu']:.2f} ms "
                f"of a processor), predicted {1e3 * guess.seconds:.2f} ms; bytes a step {per_step}, in "
                f"{sum(real['calls'].values()) / given.steps:.1f} messages")  # fmt: skip
            told["ranks"] = {**real, "predicted": guess.to_table()}
    model = cost_model.calibrate(points, network, load)
    law, memory = model.seconds, model.memory
    say(f"\none core: {1e3 * law.fixed:.2f} ms + {1e6 * law.root:.2f} us sqrt(n) + {1e9 * law.each:.0f} ns n, 95 % within "
        f"a factor {2.718281828**model.spread:.2f}; memory {memory.fixed / 1e6:.0f} MB + {memory.each:.0f} bytes n")  # fmt: skip
    told |= {"model": model.to_table(), "table": []}
    say(
        f"\nseconds a step, one rank to each of 32 cores, 100GbE\n{'agents':>14}"
        + "".join(f"{m:>11}" for m in MACHINES)
    )
    for agents in POPULATIONS:
        row = [model.predict(cost_model.Cluster(agents=agents, nodes=m, cores=32, network="100GbE")) for m in MACHINES]
        told["table"] += [p.to_table() for p in row]
        say(f"{agents:>14,}" + "".join(f"{p.seconds:>11.3g}" for p in row))
        say(f"{'GB a rank':>14}" + "".join(f"{p.memory_per_rank / 1e9:>11.2f}" for p in row))
        say(f"{'efficiency':>14}" + "".join(f"{p.efficiency:>11.0%}" for p in row))
    if model.jitter:
        few = [cost_model.simulate(model.jitter, m, 400, seed=1) for m in (1, 8, 64)]
        say("\nthe slowest of 8 and 64 ranks over one, from the spread of repeats: "
            + ", ".join(f"{f / few[0]:.3f} simulated, {cost_model.slowest(model.jitter, m):.3f} expected"
                        for f, m in zip(few[1:], (8, 64), strict=True)))  # fmt: skip
    if given.json:
        print(json.dumps(told))


if __name__ == "__main__":
    main()
