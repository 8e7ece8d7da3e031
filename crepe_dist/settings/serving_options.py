"""What the HTTP service lets in, and how it is reached."""

from dataclasses import dataclass

from crepe_dist.settings.allowed_values import LONGEST_DOCUMENT
from crepe_dist.settings.limits import Settings, real, setting, whole

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

    max_chars: int = setting(100_000, whole(1, LONGEST_DOCUMENT))
    max_batch: int = setting(256, whole(1, 1 << 20))
    max_body: int = setting(1 << 20, whole(1, 1 << 30))
    queue: int = setting(64, whole(1, 1 << 20))
    timeout: float = setting(10.0, real(0, 86_400, open_below=True))
    names: frozenset[str] = frozenset()
