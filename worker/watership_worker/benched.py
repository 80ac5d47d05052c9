"""The worker that `watership bench` runs as a process: three steps that do nothing."""

from __future__ import annotations

from watership.benching.saga import sagas
from watership_worker.worker import Worker

worker = Worker(sagas_mapper=sagas)
