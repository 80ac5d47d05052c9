"""The results as JSON: what was measured, on what, when. The pages and the plots are drawn from it alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.support.servers import ROOT

RESULTS = ROOT / "docs" / "benchmarks" / "results.json"


@dataclasses.dataclass
class Results:
    """All parts that have been measured on one machine. A part that is measured again replaces its older self."""

    machine: dict[str, str]
    peers: dict[str, str]
    parts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What was written."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """One line for each small value, so that a difference can be read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_rounded(dataclasses.asdict(self)), indent=1, ensure_ascii=False) + "\n")


def _rounded(value: Any) -> Any:
    """Four digits: the rest is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value
