"""What the README draws is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from watership.machine.apply import STATUS_MOVES

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"<!-- status diagram -->\n(.*?)\n<!-- end of status diagram -->", re.DOTALL)


def drawn() -> str:
    """The state diagram of the machine's table."""
    lines = [
        "stateDiagram-v2",
        "    [*] --> PENDING: created, its plan not known yet",
        "    [*] --> RUNNING: created",
    ]
    for change, (sources, target) in STATUS_MOVES.items():
        lines.extend(f"    {source} --> {target}: {change.kind}" for source in sorted(sources))
    return "```mermaid\n" + "\n".join(lines) + "\n```"


def test_the_status_diagram_is_the_machines_table() -> None:
    found = BLOCK.search(README.read_text())
    assert found is not None, "the README has no status diagram between its two comments"
    assert found.group(1) == drawn()
