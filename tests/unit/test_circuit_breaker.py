"""The circuit breaker through its public face, with the real aiobreaker behind it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable

import pytest

from watership.adapters.circuit_breaker import AioBreakerAdapter, Breakers, BreakerSettings, CircuitOpen, breaker_for
from watership.errors import ConfigurationError, StepError
from watership.machine.nodes import BreakerPlan


class CardDeclined(StepError):
    code = "test_breaker_card_declined"


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Service:
    """A step's work: counts its calls and does what it was told."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.gate: asyncio.Event | None = None

    async def __call__(self) -> str:
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return "done"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> Service:
    return Service()


async def fails(
    breaker: AioBreakerAdapter, service: Callable[[], Awaitable[object]], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        await breaker.call("Charge", service)


async def opened(clock: Clock, service: Service, fail_max: int = 2) -> AioBreakerAdapter:
    breaker = AioBreakerAdapter(fail_max=fail_max, timeout_duration=60, now=clock)
    service.error = RuntimeError("down")
    for _ in range(fail_max):
        await fails(breaker, service, RuntimeError)
    service.calls = 0
    return breaker


async def settle() -> None:
    """Lets every task run as far as it can without outside help."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_result_passes_through(service: Service) -> None:
    assert await AioBreakerAdapter().call("Charge", service) == "done"


async def test_the_failure_that_trips_it_keeps_its_own_type(service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60)
    declined = CardDeclined("no")
    service.error = declined
    for _ in range(2):
        with pytest.raises(CardDeclined) as caught:
            await breaker.call("Charge", service)
        assert caught.value is declined
        assert declined.__cause__ is None and declined.__context__ is None


async def test_open_raises_circuit_open_without_calling(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    clock.now_s += 59
    with pytest.raises(CircuitOpen, match=r"Charge was not called: .* open .* next trial is in 1\.0 s") as caught:
        await breaker.call("Charge", service)
    assert service.calls == 0
    assert caught.value.code == "circuit_open"
    assert isinstance(caught.value, StepError)


async def test_a_success_begins_the_count_anew(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60, now=clock)
    for error in (RuntimeError(), None, RuntimeError(), None):
        service.error = error
        if error is None:
            await breaker.call("Charge", service)
        else:
            await fails(breaker, service, RuntimeError)
    assert service.calls == 4


async def test_a_trial_that_succeeds_closes_it(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    clock.now_s += 60
    service.error = None
    assert await breaker.call("Charge", service) == "done"
    service.error = RuntimeError("once is not enough again")
    await fails(breaker, service, RuntimeError)
    service.error = None
    assert await breaker.call("Charge", service) == "done"


async def test_a_trial_that_fails_opens_it_for_the_whole_time_again(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    clock.now_s += 60
    await fails(breaker, service, RuntimeError)
    assert service.calls == 1
    clock.now_s += 59
    await fails(breaker, service, CircuitOpen)
    clock.now_s += 1
    await fails(breaker, service, RuntimeError)
    assert service.calls == 2


async def test_half_open_lets_exactly_one_of_fifty_through(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    clock.now_s += 60
    service.error, service.gate = None, asyncio.Event()
    calls = [asyncio.create_task(breaker.call("Charge", service)) for _ in range(50)]
    await settle()
    assert service.calls == 1
    service.gate.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes.count("done") == 1
    refused = [outcome for outcome in outcomes if isinstance(outcome, CircuitOpen)]
    assert len(refused) == 49
    assert "half-open" in str(refused[0])
    assert await breaker.call("Charge", service) == "done"


async def test_a_timeout_inside_counts(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60, now=clock)
    service.gate = asyncio.Event()

    async def with_timeout() -> str:
        async with asyncio.timeout(0.001):
            return await service()

    await fails(breaker, with_timeout, TimeoutError)
    await fails(breaker, with_timeout, TimeoutError)
    await fails(breaker, with_timeout, CircuitOpen)
    assert service.calls == 2


async def test_a_cancellation_counts_neither_way(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60, now=clock)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    service.error = asyncio.CancelledError()
    for _ in range(5):
        await fails(breaker, service, asyncio.CancelledError)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)  # the second failure in a row: the cancellations did not reset it
    await fails(breaker, service, CircuitOpen)


async def test_a_cancelled_trial_makes_room_for_the_next(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    clock.now_s += 60
    service.error, service.gate = None, asyncio.Event()
    trial = asyncio.create_task(breaker.call("Charge", service))
    await settle()
    await fails(breaker, service, CircuitOpen)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    service.gate = None
    assert await breaker.call("Charge", service) == "done"


async def test_excluded_errors_count_neither_way(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60, exclude=[CardDeclined, LookupError], now=clock)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    for excluded in (CardDeclined("no"), KeyError("a subclass of LookupError")):
        service.error = excluded
        for _ in range(3):
            await fails(breaker, service, type(excluded))
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    await fails(breaker, service, CircuitOpen)


async def test_an_excluded_error_in_the_trial_leaves_it_half_open(clock: Clock) -> None:
    service, breaker = Service(), AioBreakerAdapter(1, 60, [CardDeclined], now=clock)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    clock.now_s += 60
    service.error = CardDeclined("no")
    await fails(breaker, service, CardDeclined)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    await fails(breaker, service, CircuitOpen)


async def test_each_identifier_has_its_own_circuit(clock: Clock, service: Service) -> None:
    breaker = await opened(clock, service)
    service.error = None
    assert await breaker.call("Reserve", service) == "done"
    await fails(breaker, service, CircuitOpen)


async def test_a_slow_failure_from_before_does_not_open_it_again(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=1, timeout_duration=60, now=clock)
    slow = Service()
    slow.error, slow.gate = RuntimeError("slow"), asyncio.Event()
    late = asyncio.create_task(breaker.call("Charge", slow))
    await settle()
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    clock.now_s += 60
    service.error = None
    assert await breaker.call("Charge", service) == "done"
    slow.gate.set()
    with pytest.raises(RuntimeError, match="slow"):
        await late
    assert await breaker.call("Charge", service) == "done"


async def test_a_slow_failure_from_before_does_not_prolong_it(clock: Clock, service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=1, timeout_duration=60, now=clock)
    slow = Service()
    slow.error, slow.gate = RuntimeError("slow"), asyncio.Event()
    late = asyncio.create_task(breaker.call("Charge", slow))
    await settle()
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    clock.now_s += 59
    slow.gate.set()
    with pytest.raises(RuntimeError, match="slow"):
        await late
    clock.now_s += 1
    service.error = None
    assert await breaker.call("Charge", service) == "done"


async def test_it_works_on_the_real_clock(service: Service) -> None:
    breaker = AioBreakerAdapter(fail_max=1, timeout_duration=0.02)
    service.error = RuntimeError()
    await fails(breaker, service, RuntimeError)
    service.error = None
    async with asyncio.timeout(10):
        while True:
            try:
                assert await breaker.call("Charge", service) == "done"
                break
            except CircuitOpen:
                await asyncio.sleep(0.005)


async def test_it_warns_of_nothing_and_leaves_the_filters_alone(clock: Clock, service: Service) -> None:
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        breaker = await opened(clock, service)
        clock.now_s += 60
        await fails(breaker, service, RuntimeError)
    assert [str(warning.message) for warning in caught] == []
    assert list(warnings.filters) == filters


async def test_it_logs_when_it_opens_and_closes(
    clock: Clock, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="watership.adapters.circuit_breaker")
    breaker = await opened(clock, service)
    clock.now_s += 60
    service.error = None
    await breaker.call("Charge", service)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "the circuit breaker of step Charge is open"),
        ("INFO", "the circuit breaker of step Charge is half-open"),
        ("INFO", "the circuit breaker of step Charge is closed"),
    ]


def test_its_settings_are_data() -> None:
    breaker = AioBreakerAdapter(fail_max=2, timeout_duration=60, exclude=[CardDeclined, ValueError])
    assert breaker.settings == BreakerSettings(2, 60.0, ("test_breaker_card_declined", "ValueError"))
    assert AioBreakerAdapter().settings == BreakerSettings(5, 60.0, ())


@pytest.mark.parametrize(
    ("fail_max", "timeout_duration", "says"),
    [(0, 60, "fail_max"), (1, 0, "timeout_duration"), (1, float("nan"), "nan")],
)
def test_settings_that_make_no_sense_are_refused(fail_max: int, timeout_duration: float, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        AioBreakerAdapter(fail_max, timeout_duration)


async def test_a_breaker_made_from_settings_excludes_by_code(clock: Clock, service: Service) -> None:
    breaker = breaker_for(BreakerSettings(1, 60.0, ("test_breaker_card_declined",)), now=clock)
    service.error = CardDeclined("no")
    for _ in range(3):
        await fails(breaker, service, CardDeclined)
    assert service.calls == 3


async def test_a_process_shares_a_circuit_by_step_and_settings(clock: Clock, service: Service) -> None:
    breakers = Breakers(now=clock)
    settings = BreakerSettings(fail_max=1, timeout_duration_s=60)
    service.error = RuntimeError()
    with pytest.raises(RuntimeError):
        await breakers.of("Charge", settings).call("Charge", service)
    service.error = None
    same = breakers.of("Charge", BreakerPlan(fail_max=1, timeout_duration_s=60))  # as it arrives in a plan
    with pytest.raises(CircuitOpen):
        await same.call("Charge", service)
    assert await breakers.of("Reserve", settings).call("Reserve", service) == "done"
    changed = breakers.of("Charge", BreakerSettings(fail_max=2, timeout_duration_s=60))
    assert await changed.call("Charge", service) == "done"


def test_without_aiobreaker_settings_work_and_a_call_says_what_to_install() -> None:
    program = """
import asyncio, sys
sys.modules["aiobreaker"] = None
from watership.adapters.circuit_breaker import AioBreakerAdapter
breaker = AioBreakerAdapter(fail_max=2)
assert breaker.settings.fail_max == 2
async def work(): pass
asyncio.run(breaker.call("Charge", work))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    last_line = ran.stderr.strip().splitlines()[-1]
    assert last_line == (
        "watership.errors.ConfigurationError: a circuit breaker needs aiobreaker: pip install 'watership[breaker]'"
    )
