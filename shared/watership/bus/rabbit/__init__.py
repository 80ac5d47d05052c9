"""RabbitMQ: the bus over aio-pika. Only this package imports it, or what it stands on (aiormq, pamqp)."""

from watership.bus.rabbit import any_bytes
from watership.bus.rabbit.bus import RabbitBus

__all__ = ["RabbitBus"]

any_bytes.install()  # before any connection is made
