"""The response of a step: what the caller of ``stream`` sees of it."""

from __future__ import annotations

import pydantic


class Response(pydantic.BaseModel):
    """Subclass it with the fields that your step answers with; a bare ``Response()`` says only "done"."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
