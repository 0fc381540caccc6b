"""`python -m study tune`: the runs of the study. What is finished, here or in figures/, is not trained again."""

import argparse
from collections.abc import Callable, Collection

from k24lab.cli import one_line_errors
from k24lab.errors import unknown
from k24lab.lab.backends import Resources, build_backend
from study.protocol import OWN_EXTRA, STUDIED, TASKS, TUNING_TASKS
from study.references import TABLE, reference_table
from study.report import report
from study.store import restore
from study.tuning import group, summaries, tune, write_choices


def one_of(kind: str, allowed: Collection[str]) -> Callable[[str], str]:
    """How argparse reads one of some names: an unknown one is told with the nearest right name."""

    def read(name: str) -> str:
        if name not in allowed:
            raise argparse.ArgumentTypeError(unknown(kind, name, allowed))
        return name

    return read


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("tune", help="both rounds of the tuning")
    one.add_argument("--tasks", nargs="+", type=one_of("task", TUNING_TASKS), default=list(TUNING_TASKS))
    one.add_argument("--methods", nargs="+", type=one_of("method", STUDIED), default=STUDIED)
    one.add_argument("--jobs", type=int, help="runs at a time; by default what the machine has room for")
    two = commands.add_parser("report", help="the runs of the report, of all methods whose tuning is complete")
    usual = [task for task in TASKS if task not in OWN_EXTRA]
    two.add_argument("--tasks", nargs="+", type=one_of("task", TASKS), default=usual)
    two.add_argument("--jobs", type=int, help="as of tune")
    commands.add_parser("choose", help="write what the tuning chose into figures/tuning/candidates.csv")
    commands.add_parser("results", help="tables and figures of the tasks whose report is complete, into figures/study/")
    commands.add_parser("references", help="returns of random actions and of scripted controllers")
    given = parser.parse_args()
    with one_line_errors():
        _run(given)


def _run(given: argparse.Namespace) -> None:
    if given.command == "references":
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        reference_table().to_csv(TABLE, index=False)
        return
    if given.command == "choose":
        for task in TUNING_TASKS:
            restore(group(task), summaries(task))
        print("complete:", ", ".join(write_choices(STUDIED)) or "no method yet")
        return
    if given.command == "results":
        from study.results import write_results  # loads matplotlib

        print("\n".join(map(str, write_results())))
        return
    if given.command == "report":
        report(given.tasks, build_backend("local", Resources(jobs=given.jobs), "report"))
        return
    tune(given.tasks, given.methods, build_backend("local", Resources(jobs=given.jobs), "tuning"))


if __name__ == "__main__":
    main()
