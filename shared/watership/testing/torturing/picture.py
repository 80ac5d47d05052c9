"""Draws a report: what was tried, where and how it ended; then the findings, each with the way to see it again.

A mark stands for one point, or one message, in the order in which a run comes to them: ✓ all ended right, ✗ one did not,
P one is parked.
"""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from watership.testing.torturing.points import Harm
from watership.testing.torturing.report import Finding, Kind, Run, TortureReport, Verdict

WIDTH = 100
FINDINGS_MAX = 20
MARKS_MAX = {Harm.CRASH: 24, Harm.STOP: 8, Harm.CUT: 8}
STAGE_MAX, ROLE_MAX, BRANCH_MAX = 26, 12, 60

_RANK = {Verdict.RIGHT: 0, Verdict.PARKED: 1, Verdict.WRONG: 2}
_MARK = {Verdict.RIGHT: ("✓", "green"), Verdict.PARKED: ("P", "yellow"), Verdict.WRONG: ("✗", "bold red")}
_COLUMNS = (Harm.CRASH, Harm.STOP, Harm.CUT, Harm.LOST, Harm.UNTOLD, Harm.TWICE, Harm.LATE)
_LEGEND = (
    "crash: it ends at that point, another starts. stop: it stands still past every deadline, is replaced, wakes. "
    "cut: its link to the broker breaks. A message is lost; arrives and its sender is not told; arrives twice; "
    "arrives late. Each ✓ is a place where all runs ended right, ✗ where one did not, P where one is parked."
)
_KINDS = {
    Kind.UNBALANCED: "your books",
    Kind.PARKED: "parked",
    Kind.STUCK: "stuck",
    Kind.HALF: "half",
    Kind.SUSPICIOUS: "suspicious",
    Kind.ENGINE: "the engine",
}


def as_text(report: TortureReport) -> str:
    """The report for a terminal without colours, or a log."""
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False, color_system=None)
    console.print(rendered(report))
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def rendered(report: TortureReport) -> RenderableType:
    """The report as rich shows it."""
    parts: list[RenderableType] = [_headline(report)]
    if report.trace:
        parts += [Text(), Text("\n".join(line[: WIDTH - 1] for line in report.trace))]
    elif any(run.cells for run in report.runs):
        parts += [Text(), _table(report), Text(textwrap.fill(_LEGEND, WIDTH - 1), style="dim")]
    pairs = [run for run in report.runs if len(run.cells) > 1]
    if pairs:
        parts += [
            Text(),
            Text.assemble(f"{len(pairs)} runs with two faults each: ", _counted(run.verdict for run in pairs)),
        ]
    alone = [run for run in report.runs if run.branch and not run.cells]
    if alone:
        parts += [Text(), Text("The saga's own ways to go wrong, with no other fault:"), _branches(alone)]
    parts += [Text(), *_findings(report.findings)]
    return Group(*parts)


def _headline(report: TortureReport) -> Text:
    counts = {verdict: sum(run.verdict is verdict for run in report.runs) for verdict in Verdict}
    total = len(report.runs)
    runs = "run" if total == 1 else "runs"
    ended = f"{counts[Verdict.RIGHT]} ended right, {counts[Verdict.WRONG]} wrong, {counts[Verdict.PARKED]} parked"
    lines = [
        f"{report.saga}: {total} {runs} in {report.elapsed_s:.1f} s, seed {report.seed}",
        f"{ended}; without a fault it ends {report.plain}",
    ]
    return Text("\n".join(textwrap.fill(line, WIDTH - 1) for line in lines), style="bold")


# --- the picture


def _table(report: TortureReport) -> Table:
    marks = _marks(report.runs)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("the saga is at", no_wrap=True, max_width=STAGE_MAX, overflow="ellipsis")
    table.add_column("hurt is", no_wrap=True, max_width=ROLE_MAX)
    for harm in _COLUMNS:
        table.add_column(harm.value, no_wrap=True)
    shown = ""
    for stage in report.stages:
        for role in dict.fromkeys(role for at, role, _ in marks if at == stage):
            cells = [_cell(marks.get((stage, role, harm.value), {}), MARKS_MAX.get(harm, 5)) for harm in _COLUMNS]
            table.add_row(Text(stage if stage != shown else ""), Text(role, style="dim"), *cells)
            shown = stage
    return table


Marks = dict[tuple[str, str, str], dict[tuple[str, int], Verdict]]


def _marks(runs: Iterable[Run]) -> Marks:
    """The worst verdict at each point, by stage, role and harm; the points in the order in which they came."""
    marks: Marks = {}
    for run in runs:
        for cell in run.cells if len(run.cells) == 1 else ():  # of two faults, who knows which it was
            at = marks.setdefault((cell.stage, cell.role, cell.harm), {})
            known = at.setdefault((cell.name, cell.place), run.verdict)
            at[cell.name, cell.place] = max(known, run.verdict, key=_RANK.__getitem__)
    return marks


def _cell(points: Mapping[tuple[str, int], Verdict], width: int) -> Text:
    if len(points) <= width:
        return Text.assemble(*(_MARK[verdict] for verdict in points.values()))
    return _counted(points.values())


def _counted(verdicts: Iterable[Verdict]) -> Text:
    counts = Counter(verdicts)
    marks = ((f"{counts[verdict]}{_MARK[verdict][0]} ", _MARK[verdict][1]) for verdict in Verdict if counts[verdict])
    text = Text.assemble(*marks)
    text.rstrip()
    return text


def _branches(runs: Sequence[Run]) -> RenderableType:
    longest = min(max(len(run.branch) for run in runs), BRANCH_MAX)
    lines = []
    for run in runs:
        reason = f"  parked: {run.parked_reason}" if run.parked_reason else ""
        words = f" {run.branch:<{longest}}  {run.status}{reason}"
        words = words if len(words) < WIDTH - 1 else f"{words[: WIDTH - 3]}…"
        lines.append(Text.assemble(_MARK[run.verdict], words, no_wrap=True))
    return Group(*lines)


# --- the findings


def _findings(findings: list[Finding]) -> Iterable[RenderableType]:
    if not findings:
        yield Text("Nothing was found.", style="green")
        return
    yield Text(f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'}:", style="bold")
    for number, finding in enumerate(findings[:FINDINGS_MAX], start=1):
        more = f" (and in {finding.runs - 1} more runs)" if finding.runs > 1 else ""
        yield _hanging(f"{number:>3}. ", f"{_KINDS[finding.kind]}: {finding.sentence}", "red")
        yield _hanging("     with   ", f"{finding.fault}{more}", "")
        yield _hanging("     again  ", f'only="{finding.key}"', "cyan")
    if len(findings) > FINDINGS_MAX:
        yield Text(f"     … and {len(findings) - FINDINGS_MAX} more: `findings` of the report, or --json, has them all")


def _hanging(head: str, words: str, style: str) -> Text:
    """A paragraph whose further lines stand under its first."""
    lines = [
        line
        for paragraph in words.splitlines() or [""]
        for line in textwrap.wrap(paragraph, WIDTH - 1 - len(head), break_long_words=False) or [""]
    ]
    indent = "\n" + " " * len(head)
    return Text.assemble((head, "dim"), (indent.join(lines), style))
