"""Planned runs carried out, on the cores of this machine or by another engine, with their progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Literal

from mfmarl.cli.progress import Progress
from mfmarl.evaluation.comparison import Engine, PlannedRun, execute
from mfmarl.evaluation.summary import count


def carry_out(
    runs: Sequence[PlannedRun],
    jobs: int = 0,
    quiet: bool = False,
    imports: Sequence[str] = (),
    engine: Engine | Literal["local"] = "local",
) -> list[tuple[PlannedRun, str]]:
    """Carry out the runs, `jobs` at a time (0: one for each core, or as many as the engine has room for).

    Returns those that failed, with their reasons. `engine`: see mfmarl.cli.engines.
    """
    total = sum(r.config.run.steps for r in runs)
    done: dict[str, int] = {}
    agent_steps: dict[str, int] = {}
    begun = time.monotonic()
    with Progress(quiet) as progress:
        progress.add("all runs", total)

        def on_event(planned: PlannedRun, event: dict[str, Any]) -> None:
            key = str(planned.path)
            if event["event"] == "row":
                done[key] = event["row"]["step"]
                agent_steps[key] = event["row"]["agent_steps"]
            elif event["event"] == "done":
                done[key] = planned.config.run.steps
            elif event["event"] == "failed":
                progress.say(f"failed: {planned.environment} {planned.agent} seed {planned.seed}: {event['error']}")
            elif event["event"] in ("restarted", "waiting"):
                progress.say(
                    f"{event['event']}: {planned.environment} {planned.agent} seed {planned.seed}: {event['error']}"
                )
            finished = sum(v >= r.config.run.steps for r in runs if (v := done.get(str(r.path), 0)))
            rate = sum(agent_steps.values()) / max(time.monotonic() - begun, 1e-9)
            note = f"{finished}/{len(runs)} runs  {count(rate)} agent-steps/s"
            progress.update("all runs", sum(done.values()), note)

        if engine == "local":
            jobs = jobs or os.cpu_count() or 1
        return execute(runs, jobs, on_event, imports, engine)
