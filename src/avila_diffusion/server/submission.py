"""What is asked of the service: fields of a request as a dialect read them, and the circumstances."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY = re.compile(r"[\x21-\x7e]{1,255}")
"""What an idempotency key is, in every dialect."""
LONGEST_TASK = 128
"""Characters of a client's own name for a job."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job that somebody wants.

    values: fields of GenerateRequest, pictures as Picture or as its `to_json`; what is missing is the model's own default,
    then the request's. client: whose it is (`guard.client_of`). model, vae, refiner: any of their names, None for the
    default (`Service.default_model`), the model's own, none. key: idempotency key; digest: of the body that came with it.
    task: the client's own name for the job. priority: -100 to 100, larger goes first among the client's own. extra: plain
    values that the dialect wants to find again in `Job.extra`. size: bytes of the body, for the limit of the queue.
    seconds: until it must have ended.
    """

    values: Mapping[str, Any]
    client: str
    model: str | None = None
    vae: str | None = None
    refiner: str | None = None
    priority: int = 0
    dialect: str = "avila"
    key: str | None = None
    digest: str | None = None
    task: str | None = None
    seconds: float | None = None
    size: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
