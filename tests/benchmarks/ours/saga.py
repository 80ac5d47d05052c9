"""The saga that all are measured with: the one of `watership bench`, three steps with empty handlers and 300 bytes of context."""

from __future__ import annotations

from watership.benching.saga import STEPS, BenchContext, BenchSaga, sagas
from watership_worker.benched import worker

__all__ = ["STEPS", "WARMING", "BenchContext", "BenchSaga", "sagas", "worker"]

WARMING = 200  # sagas that are run before any is counted, and one before them
