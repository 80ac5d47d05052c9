"""The saga as a Restate handler with three durable steps: what hypercorn serves. ``NUMBER`` makes its name its own."""

from __future__ import annotations

import os
from typing import Any

import restate

service = restate.Service(f"Bench{os.environ.get('NUMBER', '0')}")


async def nothing() -> None:
    """A step."""


@service.handler()
async def run(ctx: restate.Context, _context: dict[str, Any]) -> str:
    """Three steps that do nothing."""
    await ctx.run_typed("reserve", nothing)
    await ctx.run_typed("charge", nothing)
    await ctx.run_typed("ship", nothing)
    return "ok"


app = restate.app(services=[service])
