"""`skytrain doctor`: what this machine can do, and how to get what is missing."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skytrain.doctor import Finding


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "doctor",
        help="tell what this machine can do, and how to get what is missing",
        description="Tries what is installed here, a line each, by what one wants to do. Takes some seconds. Exit "
        "status 0 where this machine's device (its GPUs, or the CPU where it has none) can train, 1 where it cannot.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Exit status: 1 where training does not work."""
    from skytrain.doctor import judged, trains
    from skytrain.doctor_facts import gather

    facts = gather()
    groups = judged(facts)
    if arguments.json:
        found = {group: [finding._asdict() for finding in findings] for group, findings in groups.items()}
        print(json.dumps({"trains": trains(groups), "groups": found, "facts": facts}, indent=1))
        return 0 if trains(groups) else 1

    coloured = sys.stdout.isatty()  # Not by rich: it may be what is missing.
    for group, findings in groups.items():
        print(group)
        for finding in findings:
            tell(finding, coloured=coloured)
    print("this machine trains" if trains(groups) else "training does not work here yet: see what is not ok above")
    return 0 if trains(groups) else 1


def tell(finding: Finding, *, coloured: bool) -> None:
    word = f"{finding.state:<7}"
    if coloured:
        colour = 32 if finding.state == "ok" else 31 if finding.basic else 33
        word = f"\033[{colour}m{word}\033[0m"
    print(f"  {word}  {finding.name:<14} {finding.what}")
    if finding.remedy:
        print(f"{'':<26}-> {finding.remedy}")
