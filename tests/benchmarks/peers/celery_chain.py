"""A Celery chain of three empty tasks on RabbitMQ: no result, no state. Ends are counted by a byte in a file.

By itself Celery acknowledges a task before it runs it, and publishes without confirms: a worker that dies loses what it
had. ``SAFE=yes`` is what keeps every message, as all others here do: quorum queues, confirms, late acknowledgement. As a
program it is the client; as a module, what ``celery worker`` serves.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery, chain

from tests.benchmarks.closed_loop import Ends, arguments, ready

CONTEXT = {"order_id": "o-1", "padding": "x" * 220, "reservation_id": None, "payment_id": None}
app = Celery("bench", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    task_default_queue=os.environ["QUEUE"],
    worker_prefetch_multiplier=100,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
if os.environ.get("SAFE") == "yes":
    app.conf.update(
        task_default_queue_type="quorum",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={"confirm_publish": True},
    )
ended = os.open(os.environ["ENDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task(name="reserve")
def reserve(context: dict[str, object]) -> dict[str, object]:
    """Nothing."""
    return context


@app.task(name="charge")
def charge(context: dict[str, object]) -> dict[str, object]:
    """Nothing."""
    return context


@app.task(name="ship")
def ship(_context: dict[str, object]) -> None:
    """Nothing: the end."""
    os.write(ended, b".")


def main() -> None:
    """Starts chains, so many at once."""
    given = arguments()
    saga = chain(reserve.s(CONTEXT), charge.s(), ship.s())
    file = Path(os.environ["ENDS"])
    ends = Ends(given.seconds)
    with app.producer_pool.acquire(block=True) as producer:
        saga.apply_async(producer=producer)
        while file.stat().st_size < 1:
            time.sleep(0.05)
        ready()
        ends.begin()
        sent = seen = 1
        while not ends.is_over:
            size = file.stat().st_size
            ends.add(count=size - seen)
            seen = size
            if sent - seen < given.at_once:
                saga.apply_async(producer=producer)
                sent += 1
            else:
                time.sleep(0.002)
    ends.report()


if __name__ == "__main__":
    main()
