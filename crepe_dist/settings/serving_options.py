"""What the HTTP service lets in, and how it is reached."""

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
        max_chars: characters of one text, with its title.
        max_batch: texts of one request.
        max_body: bytes of one request's body.
        queue: requests for predictions that are in hand or wait; one more is refused.
        timeout: seconds a request has to arrive in, and then for its turn.
        names: by which the service may be addressed besides IP addresses and localhost, in lower case.
    """

    max_chars: Annotated[int, whole(1, LONGEST_DOCUMENT)] = 100_000
    max_batch: Annotated[int, whole(1, 1 << 20)] = 256
    max_body: Annotated[int, whole(1, 1 << 30)] = 1 << 20
    queue: Annotated[int, whole(1, 1 << 20)] = 64
    timeout: Annotated[float, real(0, 86_400, open_below=True)] = 10.0
    names: frozenset[str] = frozenset()
