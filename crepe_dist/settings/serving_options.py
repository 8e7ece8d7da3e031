"""Limits and address of the HTTP service."""

from typing import Annotated

from pydantic.dataclasses import dataclass

from crepe_dist.settings.allowed_values import LONGEST_DOCUMENT
from crepe_dist.settings.limits import real, whole
from crepe_dist.settings.schema import Settings

PORT = 8080


@dataclass
class ServiceOptions(Settings):
    """Settings of the service.

    Args:
        max_chars: most characters of a text, including its title.
        max_batch: most texts of a request.
        max_body: most bytes of a request's body.
        queue: most prediction requests that run or wait; further ones are rejected.
        timeout: seconds for a request to arrive, and again for its turn to come.
        model_name: name of the model in the paths of the Open Inference Protocol.
        names: host names, in lower case, that the service answers to besides IP addresses and localhost.
    """

    max_chars: Annotated[int, whole(1, LONGEST_DOCUMENT)] = 100_000
    max_batch: Annotated[int, whole(1, 1 << 20)] = 256
    max_body: Annotated[int, whole(1, 1 << 30)] = 1 << 20
    queue: Annotated[int, whole(1, 1 << 20)] = 64
    timeout: Annotated[float, real(0, 86_400, open_below=True)] = 10.0
    model_name: str = "crepe"
    names: frozenset[str] = frozenset()
