"""Errors in the format of OpenAI's API."""

from __future__ import annotations

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cards.backends.http.client import RejectedRequestError
from cards.errors import CardsError, ModelError, RewardError, UnavailableError

UNION_TAG = re.compile(r"(constrained-)?str|function-after.*|list\[.*\]")  # pydantic's names for the members of a union
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """An HTTP error in OpenAI's format. `param` is the field at fault; `retry_after` is in seconds."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 408:  # do not wait for the rest of the body
            headers["Connection"] = "close"
        if status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="cards"'
        super().__init__(status, _encodable(message), headers)
        self.param, self.code = param and _encodable(param), code

    @property
    def body(self) -> dict[str, Any]:
        status = self.status_code
        kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def api_error(error: Exception) -> ApiError:
    """Convert an error: status 400 for the client's errors, 503 for failing models, 500 without details for all others."""
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            converted = ApiError(error.status_code, str(error.detail))
            converted.headers = error.headers
            return converted
        case RewardError():
            return ApiError(503, str(error), code="reward_failed", retry_after=5)
        case RejectedRequestError() if not error.too_long:  # by a server that a model runs on
            return ApiError(503, str(error), code="model_refused")
        case UnavailableError() | ModelError():
            return ApiError(503, str(error), code="model_unavailable", retry_after=5)
        case CardsError():
            return ApiError(400, str(error))
    return ApiError(500, "Internal server error. See the server log.", code="internal_error")


def _encodable(text: str) -> str:
    """Escape lone surrogates, which JSON can contain and UTF-8 cannot."""
    return text.encode(errors="backslashreplace").decode()


def _validation_error(error: RequestValidationError) -> ApiError:
    # In a union, the member of the right type has the most useful error.
    chosen = min(error.errors(), key=lambda each: each["type"].endswith("_type"))
    path = [str(part) for part in chosen["loc"][1:] if not UNION_TAG.fullmatch(str(part))]
    if chosen["type"] == "json_invalid":
        why = f"The body is not valid JSON: {chosen['ctx']['error']} at character {path[0]}."
        return ApiError(400, why, code="invalid_json")
    message = f"{'.'.join(path) or 'The body'}: {chosen['msg']}."
    return ApiError(400, message, param=path[0] if path else None, code=chosen["type"])
