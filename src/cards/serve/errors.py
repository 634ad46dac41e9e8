"""What goes wrong, as OpenAI's clients expect to hear it."""

from __future__ import annotations

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cards.backends.http.client import RejectedRequestError
from cards.errors import CardsError, ModelError, RewardError, UnavailableError

TAG = re.compile(r"(constrained-)?str|function-after.*|list\[.*\]")  # pydantic's names for the kinds in a union
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """A refusal: HTTP status, message, the field of the request at fault, a code, and seconds after which to come again."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 408:  # who is that slow is not waited for
            headers["Connection"] = "close"
        super().__init__(status, _sayable(message), headers)
        self.param, self.code = param and _sayable(param), code

    @property
    def body(self) -> dict[str, Any]:
        status = self.status_code
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def api_error(error: Exception) -> ApiError:
    """The refusal that an error amounts to: 400 is the client's fault, 503 a model's, 500 anything else, without details."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            refusal = ApiError(error.status_code, str(error.detail))
            refusal.headers = error.headers
            return refusal
        case RewardError():
            return ApiError(503, str(error), code="reward_failed", retry_after=5)
        case RejectedRequestError() if not error.too_long:  # by a server that a model runs on
            return ApiError(503, str(error), code="model_refused")
        case UnavailableError() | ModelError():
            return ApiError(503, str(error), code="model_unavailable", retry_after=5)
        case CardsError():
            return ApiError(400, str(error))
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error")


def _sayable(text: str) -> str:
    """Without halves of characters, which clients can send in JSON and nobody can encode."""
    return text.encode(errors="backslashreplace").decode()


def _invalid(error: RequestValidationError) -> ApiError:
    first = min(error.errors(), key=lambda each: each["type"].endswith("_type"))  # of a union, the kind that nearly fits
    where = [str(part) for part in first["loc"][1:] if not TAG.fullmatch(str(part))]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is no JSON: {first['ctx']['error']} at character {where[0]}.", code="invalid_json")
    message = f"{'.'.join(where) or 'The body'}: {first['msg']}."
    return ApiError(400, message, param=where[0] if where else None, code=first["type"])
