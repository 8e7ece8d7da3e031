"""What the HTTP service lets in, and how it is reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

from crepe_dist.errors import UserError

PORT = 8080


@dataclass(frozen=True)
class ServiceOptions:
    """Settings of the service.

    Args:
        max_chars: characters of one text, with its title.
        max_batch: texts of one request.
        max_body: bytes of one request's body.
        queue: requests for predictions that are in hand or wait; one more is refused.
        timeout_s: seconds a request has to arrive in, and then for its turn.
        names: by which the service may be addressed besides IP addresses and localhost, in lower case.

    Raises:
        UserError: a limit below 1.
    """

    max_chars: int = 100_000
    max_batch: int = 256
    max_body: int = 1 << 20
    queue: int = 64
    timeout_s: float = 10.0
    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("max_chars", "max_batch", "max_body", "queue"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is {getattr(self, name)}", remedy="give a number above zero")
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise UserError(f"--timeout is {self.timeout_s}", remedy="give a number of seconds above zero")
