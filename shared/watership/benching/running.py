"""Sagas through an installation: by services that run for the moment as processes of their own, or in this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from watership.benching.findings import SagaFindings, percentile
from watership.benching.saga import BenchContext, sagas
from watership.errors import ConfigurationError
from watership.saga.bootstrap import bootstrap
from watership.saga.mediator import SagaMediator

SERVICES = {
    "orchestrator": ("orchestrator",),
    "worker": ("worker", "watership_worker.benched:worker"),
    "reaper": ("reaper",),
}
UP_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
ALONE_SHARE = 0.25  # of the time: one saga after the other


@contextlib.asynccontextmanager
async def services(broker_url: str, database_url: str, namespace: str) -> AsyncIterator[dict[str, int]]:
    """An orchestrator, a worker and a reaper; their process ids. They are ended on leaving."""
    environment = {
        **os.environ,
        "WATERSHIP_BROKER_URL": broker_url,
        "WATERSHIP_DATABASE_URL": database_url,
        "WATERSHIP_NAMESPACE": namespace,
    }
    async with contextlib.AsyncExitStack() as stack:
        begun = {}
        for name, arguments in SERVICES.items():
            begun[name] = await stack.enter_async_context(_service(name, arguments, environment))
        yield begun


@contextlib.asynccontextmanager
async def _service(name: str, arguments: tuple[str, ...], environment: dict[str, str]) -> AsyncIterator[int]:
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "watership.cli", *arguments),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            yield process.pid
            if process.returncode is not None:
                raise ConfigurationError(f"the {name} that was to be measured ended: {_last_line(errors)}")
        except TimeoutError:
            if process.returncode is None:
                raise
            raise ConfigurationError(f"the {name} that was to be measured ended: {_last_line(errors)}") from None
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_WITHIN_S)
            except TimeoutError:
                process.kill()
                await process.wait()


def _last_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


async def measure_distributed(
    broker_url: str, database_url: str, namespace: str, *, at_once: int, seconds: float
) -> SagaFindings:
    """Sagas through services of their own."""
    async with services(broker_url, database_url, namespace) as pids:
        mediator = bootstrap(sagas_mapper=sagas, broker_url=broker_url, namespace=namespace)
        async with mediator:
            try:
                async with asyncio.timeout(UP_WITHIN_S):
                    await mediator.run(BenchContext())
            except TimeoutError:
                raise TimeoutError(f"no saga ended within {UP_WITHIN_S:g} s") from None
            return await _measure(mediator, at_once, seconds, pids)


async def measure_embedded(database_url: str, namespace: str, *, at_once: int, seconds: float) -> SagaFindings:
    """Sagas in this process."""
    mediator = bootstrap(sagas_mapper=sagas, database_url=database_url, namespace=namespace)
    async with mediator:
        await mediator.run(BenchContext())
        return await _measure(mediator, at_once, seconds, {})


async def _measure(mediator: SagaMediator, at_once: int, seconds: float, pids: dict[str, int]) -> SagaFindings:
    _, alone_s, _ = await _run(mediator, 1, seconds * ALONE_SHARE)
    pids = {**pids, "this process": os.getpid()}
    before, machine_before = {name: cpu_s(pid) for name, pid in pids.items()}, _machine_ticks()
    ended, _, passed_s = await _run(mediator, at_once, seconds)
    machine_busy = _share(machine_before, _machine_ticks())
    spent = {name: (cpu_s(pid), before[name]) for name, pid in pids.items()}
    busy = {
        name: (now - then) / passed_s for name, (now, then) in spent.items() if now is not None and then is not None
    }
    return SagaFindings(
        ended / passed_s, at_once, percentile(alone_s, 0.5) * 1000, percentile(alone_s, 0.99) * 1000, busy, machine_busy
    )


async def _run(mediator: SagaMediator, at_once: int, seconds: float) -> tuple[int, list[float], float]:
    """Sagas, so many at once, each after the other: how many ended, how long each took, how long all."""
    took_s: list[float] = []
    first_s = time.perf_counter()

    async def lane() -> None:
        while (began_s := time.perf_counter()) < first_s + seconds:
            await mediator.run(BenchContext())
            took_s.append(time.perf_counter() - began_s)

    async with asyncio.TaskGroup() as lanes:
        for _ in range(at_once):
            lanes.create_task(lane())
    return len(took_s), took_s, time.perf_counter() - first_s


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process so far, where the system tells it as Linux does; else None."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None


def _machine_ticks() -> tuple[int, int] | None:
    """What all cores have spent so far, busy and in all, where the system tells it as Linux does."""
    try:
        with Path("/proc/stat").open() as lines:
            fields = [int(field) for field in lines.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(fields) - fields[3] - fields[4], sum(fields)  # idle, and waiting for a disk


def _share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] == before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
