"""What a run costs: the CPU seconds of groups of processes, of RabbitMQ and of Postgres, and what Postgres wrote.

RabbitMQ and Postgres are found on this host by their processes. In containers, or on other hosts, they are not seen,
and the results say nothing of them.
"""

from __future__ import annotations

import contextlib
import dataclasses

import psutil

BROKER, DATABASE = "RabbitMQ", "PostgreSQL"


@dataclasses.dataclass(frozen=True)
class Reading:
    """CPU seconds so far, for each group that can be seen."""

    cpu_s: dict[str, float]

    def since(self, before: Reading) -> dict[str, float]:
        """What was spent in between."""
        return {name: cpu_s - before.cpu_s[name] for name, cpu_s in self.cpu_s.items() if name in before.cpu_s}


class Accounts:
    """Reads the meters of a run's processes and of the two servers."""

    def __init__(self) -> None:
        self._groups: dict[str, list[psutil.Process]] = {}
        self._broker = _processes("beam.smp", "rabbit")
        self._database = list(filter(_is_postmaster, _processes("postgres", "")))

    def add(self, group: str, pid: int) -> None:
        """A process of this run."""
        self._groups.setdefault(group, []).append(psutil.Process(pid))

    def read(self) -> Reading:
        """Now."""
        cpu_s = {group: sum(map(_with_children_s, members)) for group, members in self._groups.items()}
        if self._broker:
            cpu_s[BROKER] = sum(map(_cpu_s, self._broker))
        if self._database:
            cpu_s[DATABASE] = sum(map(_with_children_s, self._database))
        return Reading(cpu_s)

    def resident_bytes(self) -> dict[str, int]:
        """The memory of each group of this run's own processes."""
        return {group: sum(map(_resident_bytes, members)) for group, members in self._groups.items()}


def _processes(name: str, word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == name and word in " ".join(process.cmdline()):
                found.append(process)
    return found


def _is_postmaster(process: psutil.Process) -> bool:
    """The one whose parent is no Postgres: all others are its children. They come and go while we look."""
    with contextlib.suppress(psutil.Error):
        parent = process.parent()
        return parent is None or parent.name() != "postgres"
    return False


def _cpu_s(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _with_children_s(process: psutil.Process) -> float:
    """Its own, that of the children that it has, and that of those that have ended and that it waited for."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        own_s = float(times.user + times.system + times.children_user + times.children_system)
        return own_s + sum(map(_cpu_s, process.children(recursive=True)))
    return 0.0


def _resident_bytes(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss) + sum(one.memory_info().rss for one in process.children(recursive=True))
    return 0
