"""`mfmarl report`: the page of a run or comparison, from its folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mfmarl.cli.choices import add_import_option, add_statistics_options, import_all
from mfmarl.errors import ConfigError

EXAMPLES = """  mfmarl report runs/ising-20260101-120000
  mfmarl report runs/mine --metric eval/magnetisation --burn-in 0.7
  mfmarl report runs/mine --status   # how every run stands, while others still go on
  mfmarl report runs/mine --allow-unequal --export csv
  mfmarl report runs/beach   # of a solved game too"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run, comparison, tournament or solved game's folder")
    add_statistics_options(parser)
    parser.add_argument(
        "--status", action="store_true", help="only say how every run of a comparison stands: done, failed, running ..."
    )
    add_import_option(
        parser, "a Python file or module that the folder's runs name: it is only carried out where you name it too"
    )
    parser.add_argument(
        "--export",
        choices=("marl-eval", "csv"),
        action="append",
        default=[],
        help="also write marl_eval.json or runs.csv",
    )


def run(known: argparse.Namespace, rest: list[str]) -> int:
    import_all(known.imports)
    if known.status:
        return _status(known)
    from mfmarl.evaluation.equilibrium_report import report_solved
    from mfmarl.evaluation.report import report_run, write_report
    from mfmarl.evaluation.results import read_comparison
    from mfmarl.evaluation.solved import is_solved
    from mfmarl.evaluation.summary import print_table, summary
    from mfmarl.learning.run_folder import is_run

    if not known.folder.is_dir():
        raise ConfigError(f"There is no folder {known.folder}.")
    if is_run(known.folder):
        page = report_solved(known.folder) if is_solved(known.folder) else report_run(known.folder)
        print(json.dumps({"report": str(page)}) if known.json else f"report: {page}")
        return 0
    if (known.folder / "scale.json").is_file():
        from mfmarl.evaluation.scaling.report import write_report as write_scaling

        page = write_scaling(known.folder)
        print(json.dumps({"report": str(page)}) if known.json else f"report: {page}")
        return 0
    if (known.folder / "tournament.json").is_file() and not (known.folder / "comparison.json").is_file():
        page = write_report(known.folder)
        print(json.dumps({"report": str(page)}) if known.json else f"report: {page}")
        return 0
    choices = {
        "column": known.metric,
        "burn_in": known.burn_in,
        "allow_unequal": known.allow_unequal,
        "without_diverged": known.without_diverged,
    }
    comparison = read_comparison(known.folder, **choices)
    table = summary(comparison)
    page = write_report(known.folder, **choices)
    if known.export:
        from mfmarl.evaluation.export import write_csv, write_marl_eval

        for kind in known.export:
            (write_csv if kind == "csv" else write_marl_eval)(comparison)
    if known.json:
        print(json.dumps({**table, "report": str(page)}))
    else:
        from rich.console import Console

        print_table(table, Console())
        print(f"report: {page}")
    return 0


def _status(known: argparse.Namespace) -> int:
    from mfmarl.evaluation import cells

    told = cells.table(cells.cells(known.folder))
    if known.json:
        print(json.dumps(told))
    else:
        from rich.console import Console

        cells.print_cells(told, Console(), most=1000)
    return 0
