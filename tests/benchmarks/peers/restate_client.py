"""Calls the services at a Restate server, so many at once, over kept HTTP connections."""

from __future__ import annotations

import asyncio
import itertools

import aiohttp

from tests.benchmarks.closed_loop import arguments, closed_loop

CONTEXT = {"order_id": "o-1", "padding": "x" * 220, "reservation_id": None, "payment_id": None}
UP_WITHIN_S = 40


async def register(session: aiohttp.ClientSession, admin_url: str, service_url: str) -> None:
    """Makes the server know a service, as soon as both are up."""
    for attempt in range(UP_WITHIN_S * 4):
        try:
            async with session.post(f"{admin_url}/deployments", json={"uri": service_url, "force": True}) as answer:
                if answer.status in (200, 201):
                    return
                words = await answer.text()
        except aiohttp.ClientError as error:
            words = str(error)
        if attempt == UP_WITHIN_S * 4 - 1:
            raise SystemExit(f"Restate does not take {service_url}: {words}")
        await asyncio.sleep(0.25)


async def main() -> None:
    """Registers, and calls."""
    given = arguments("admin-url", "ingress-url", "service-urls")
    services = given.service_urls.split(",")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=given.at_once)) as session:
        for service_url in services:
            await register(session, given.admin_url, service_url)
        numbers = itertools.cycle(range(len(services)))

        async def run_one() -> None:
            async with session.post(f"{given.ingress_url}/Bench{next(numbers)}/run", json=CONTEXT) as answer:
                if answer.status != 200:
                    raise SystemExit(f"Restate answers {answer.status}: {await answer.text()}")
                await answer.read()

        await closed_loop(run_one, given.at_once, given.seconds)


asyncio.run(main())
