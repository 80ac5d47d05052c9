"""Why there is no saga of an id in an embedded store: there never was one, or it was pruned (law 11)."""

from __future__ import annotations

import uuid

from watership.errors import SagaConflict, SagaNotFound, SagaPruned, WatershipError
from watership.saga.storage.protocol import SagaStorage


async def why_gone(
    storage: SagaStorage, saga_id: uuid.UUID, name: str | None = None, input_hash: str | None = None
) -> WatershipError:
    """What to raise. ``name`` and ``input_hash``: of a start under this id, which may be another one than the pruned."""
    tombstone = await storage.tombstone(saga_id)
    if tombstone is None:
        return SagaNotFound(f"no saga has the id {saga_id} in this store")
    same = tombstone.ours and tombstone.name == name and tombstone.input_hash == input_hash
    if (input_hash is None and tombstone.ours) or same:
        return SagaPruned(tombstone.words)
    return SagaConflict(f"the id {saga_id} was another saga's, a {tombstone.name} that was pruned; use another id")
