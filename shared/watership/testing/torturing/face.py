"""`torture` with everything that it stands on: its arguments become a `Cast`, and an `Inquiry` is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from watership.errors import DefinitionError
from watership.machine.nodes import WaitPlan
from watership.saga.compile import compile_saga
from watership.saga.models import shape_of
from watership.testing.runs import stand_ins_for
from watership.testing.torturing.inquiry import Inquiry, Progress
from watership.testing.torturing.report import TortureReport
from watership.testing.torturing.rig import RiggedWorker
from watership.testing.torturing.scene import Cast, Check, Fresh, settings_of, times_of


def hold(
    saga: type[Any],
    context: Any,
    *,
    steps: Mapping[str, Any] | None,
    container: object | None,
    barrier: type[Any] | None,
    check: Check | None,
    fresh: Fresh | None,
    signals: Mapping[str, Any] | None,
    pairs: int,
    seed: int | str,
    only: str | None,
    progress: Progress | None,
    is_stopped: Callable[[], bool],
) -> TortureReport:
    """See `watership.testing.torture`."""
    definition = compile_saga(saga)
    waits = {node.name for node in definition.plan.nodes if isinstance(node, WaitPlan)}
    strange = sorted(set(signals or {}) - waits)
    if strange:
        known = ", ".join(sorted(waits)) or "none"
        raise DefinitionError(f"{definition.plan.saga} waits for no signal {', '.join(strange)}; it waits for: {known}")
    times = times_of(definition.plan)
    cast = Cast(
        definition=definition,
        context=shape_of(type(context)).dump(context),
        context_type=type(context),
        worker=RiggedWorker.of(definition, barrier=barrier),
        stand_ins=stand_ins_for(definition, steps or {}),
        behind_barrier=barrier is not None,
        container=container,
        check=check,
        fresh=fresh,
        signals=signals or {},
        seed=seed,
        times=times,
        settings=settings_of(times),
    )
    return Inquiry(cast, pairs=pairs, only=only, progress=progress, is_stopped=is_stopped).hold()
