"""G7: every case of the catalogue, each in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from mfmarl.selftest.case import Case, Missed
from mfmarl.selftest.catalogue import cases
from mfmarl.selftest.goal import Order, Outcome

WANTED = 76


def attempt_case(case: Case, folder: Path) -> str:
    """Why the case is not met, in one line; empty: it is."""
    folder = folder.resolve()  # commands are carried out in it, and what names it is to mean the same there
    folder.mkdir(parents=True)
    try:
        case.run(folder)
    except Missed as missed:
        return f"case {case.number} ({case.fault}): {missed}"
    except Exception as error:  # noqa: BLE001 - a case that breaks off is not met, and the others are to be tried
        return f"case {case.number} ({case.fault}) broke off: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def catalogue(order: Order) -> Outcome:
    """Every case, whatever the share: they are few."""
    every, failures = cases(), []
    for done, case in enumerate(every, 1):
        missed = attempt_case(case, order.folder / f"case-{case.number}")
        failures += [missed] if missed else []
        order.watch(done, len(every))
    met = len(every) - len(failures)
    return Outcome(
        met == len(every) and met >= WANTED,
        f"{met} of {max(len(every), WANTED)} faults are met as promised",
        len(every),
        tuple(failures),
        figures={"met": met, "cases": len(every)},
    )
