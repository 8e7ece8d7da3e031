"""Error answers of the HTTP service: a status, and what / why / do as JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from crepe_dist.errors import UserError

PROTOCOL = "/v2"  # root of the paths of the Open Inference Protocol


class Problem(UserError):
    """Error that is sent to the client.

    Args:
        retry_after: seconds after which the same request may succeed.
        closes: whether to close the connection, because the rest of the request was not read.
    """

    def __init__(
        self,
        status: int,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        retry_after: int | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(what, why, remedy)
        self.status = status
        self.retry_after = retry_after
        self.closes = closes

    def response(self, path: str) -> Response:
        """Return the answer to a request: an error of the Open Inference Protocol is one text."""
        error = {"what": self.what, "why": self.why, "do": self.remedy}
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.closes:
            headers["Connection"] = "close"
        given = {key: value for key, value in error.items() if value}
        one_text = path == PROTOCOL or path.startswith(f"{PROTOCOL}/")
        return Json({"error": "; ".join(given.values()) if one_text else given}, self.status, headers)


class Json(Response):
    """JSON response in UTF-8; lone surrogates, which UTF-8 cannot encode, are escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
