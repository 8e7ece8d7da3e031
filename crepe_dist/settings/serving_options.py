"""Limits and address of the HTTP service."""

import re
from dataclasses import dataclass, field

from crepe_dist.settings.allowed_values import LONGEST_DOCUMENT
from crepe_dist.settings.limits import Text, real, whole
from crepe_dist.settings.schema import Settings, setting

PORT = 8080
MODEL_NAME = Text("at most 100 letters, digits and the signs _ . -", re.compile(r"[A-Za-z0-9_.-]{1,100}").fullmatch)


@dataclass
class ServiceOptions(Settings):
    """Settings of the service.

    Args:
        names: host names, in lower case, that the service answers to besides IP addresses and localhost.
    """

    model_name: str = setting("crepe", "name of the model in /v2/models/NAME (Open Inference Protocol)", MODEL_NAME)
    max_chars: int = setting(100_000, "characters of a text, its title included", whole(1, LONGEST_DOCUMENT))
    max_batch: int = setting(256, "texts per request", whole(1, 1 << 20))
    max_body: int = setting(1 << 20, "bytes per request", whole(1, 1 << 30))
    queue: int = setting(64, "requests that run or wait; others get status 503", whole(1, 1 << 20))
    timeout: float = setting(
        10.0, "seconds for a request to arrive, and again for its turn to come", real(0, 86_400, open_below=True)
    )
    names: frozenset = field(default=frozenset())  # type: ignore[type-arg]
