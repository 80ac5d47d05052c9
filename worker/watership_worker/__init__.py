"""The hands: a stateless service that does one step, once, and says what came of it."""

from watership_worker.worker import Worker

__all__ = ["Worker"]
