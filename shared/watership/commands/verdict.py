"""What came of comparing code with what is live, for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from watership.commands.screen import clean, output, say
from watership.commands.timeline import BAD, DOUBTFUL, QUIET
from watership.saga.compat import Finding, Report


def comparison_view(report: Report) -> dict[str, Any]:
    """As JSON data."""
    return {
        "compatible": report.compatible,
        "in_flight": report.in_flight,
        "read": report.read,
        "complete": report.complete,
        "plans": [
            {
                "saga": plan.live.plan.saga,
                "plan": plan.live.plan.hash,
                "driver": plan.live.driver,
                "in_flight": plan.live.in_flight,
                "read": plan.read,
                "new_starts": plan.live.starts,
            }
            for plan in report.plans
        ],
        "findings": [
            {
                "kind": finding.kind.value,
                "saga": finding.saga,
                "plan": finding.plan_hash,
                "driver": finding.driver,
                "step": finding.step,
                "words": finding.words,
                "sagas": finding.sagas,
                "new_starts": finding.starts,
                "examples": [{"saga_id": str(saga_id), "reason": reason} for saga_id, reason in finding.examples],
            }
            for finding in report.findings
        ],
        "notes": list(report.notes),
    }


def print_comparison(report: Report) -> None:
    """The verdict last, so that it is what stays on the screen."""
    console = output()
    if report.plans:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("Saga", "Plan", "Run by", "In flight", "Read", "New starts"):
            table.add_column(name, overflow="fold", justify="right" if name in ("In flight", "Read") else "left")
        for plan in report.plans:
            live = plan.live
            counts = f"{live.in_flight:,}", f"{plan.read:,}"
            by = "services" if live.driver == "orchestrator" else "its own process"
            table.add_row(Text(clean(live.plan.saga)), live.plan.hash, by, *counts, live.starts or "no")
        console.print(table)
    for finding in report.findings:
        _print_finding(finding)
    for note in report.notes:
        console.print(Text(f"note: {clean(note)}", style=QUIET), soft_wrap=True)
    if not report.complete:
        words = f"{report.read:,} of {report.in_flight:,} sagas in flight were read: --sample reads more"
        console.print(Text(words, style=DOUBTFUL))
    if report.compatible:
        say(f"compatible: this code can finish the {report.in_flight:,} sagas in flight", "green")
    else:
        count = len(report.findings)
        say(f"not compatible: {count} thing{'s' if count > 1 else ''} would not work", BAD)


def _print_finding(finding: Finding) -> None:
    console = output()
    touched = [f"{finding.sagas:,} saga{'' if finding.sagas == 1 else 's'}"] if finding.sagas else []
    touched += ["new starts"] if finding.starts else []
    touches = " and ".join(touched) or "perhaps sagas that were not read"
    head = Text.assemble(
        (finding.kind.value, BAD), f" {clean(finding.saga)}, plan {finding.plan_hash}, touches {touches}: "
    )
    console.print(head.append(clean(finding.words)), soft_wrap=True)
    for saga_id, reason in finding.examples:
        console.print(Text(f"  {saga_id}  {clean(reason)}".rstrip(), style=QUIET), soft_wrap=True)
