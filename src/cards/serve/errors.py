"""Errors in the format of OpenAI's API."""

from __future__ import annotations

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cards.backends.http.client import RejectedRequestError
from cards.errors import CardsError, ModelError, PromptTooLongError, RewardError, UnavailableError

# names of the members of a union, by pydantic or by this package
UNION_TAG = re.compile(r"(constrained-)?str|function-after.*|list\[.*\]|texts?|(lists of )?tokens")
TOO_LONG = "context_length_exceeded"  # OpenAI's code, which clients look for
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
MAX_PARAM = 100  # characters
MAX_MESSAGE = 2000  # characters; a message can quote a value of the request
PATH = re.compile(r"(?<![\w/:.])/(?:[^/\s'\"(),]+/)+")  # the folders of a file


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
        super().__init__(status, _shown(message, MAX_MESSAGE), headers)
        self.param, self.code = param and _shown(param, MAX_PARAM), code

    @property
    def body(self) -> dict[str, Any]:
        status = self.status_code
        kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def api_error(error: Exception) -> ApiError:
    """Convert an error: status 400 for the client's errors, 503 for failing models, 500 for all others.

    For 503 and 500 the message has no details, which are for the log: they may quote a model's server or other clients.
    The cause of the returned error is the original one.
    """
    if isinstance(error, ApiError):
        return error
    converted = _converted(error)
    converted.__cause__ = error
    return converted


def _converted(error: Exception) -> ApiError:
    match error:
        case RequestValidationError():
            return _validation_error(error)
        case HTTPException():
            converted = ApiError(error.status_code, str(error.detail))
            converted.headers = error.headers
            return converted
        case PromptTooLongError() if error.__cause__ is None:
            return ApiError(400, public(str(error)), code=TOO_LONG)
        case PromptTooLongError() | RejectedRequestError(too_long=True):  # the message quotes a model's server
            why = "Prompt and response are too long for the context of the model. Shorten the prompt or lower max_tokens."
            return ApiError(400, why, code=TOO_LONG)
        case RewardError():
            return ApiError(503, "The reward failed. Retry later.", code="reward_failed", retry_after=5)
        case RejectedRequestError():  # by a server that a model runs on
            return ApiError(503, "The server of the model refused the request.", code="model_refused")
        case UnavailableError() | ModelError():
            return ApiError(503, "The model is not available. Retry later.", code="model_unavailable", retry_after=5)
        case CardsError():
            return ApiError(400, public(str(error)))
    return ApiError(500, "Internal server error. See the server log.", code="internal_error")


def ending() -> ApiError:
    """Return the error of a request that the shutdown of the server interrupts."""
    why = "The server ended before the response was complete. Retry later."
    return ApiError(503, why, code="ending", retry_after=1)


def public(text: str) -> str:
    """Return a text with the names of files instead of their full paths."""
    return PATH.sub("", text)


def _shown(text: str, most: int) -> str:
    """Return at most `most` characters of a text. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return text.encode(errors="backslashreplace").decode()


def _validation_error(error: RequestValidationError) -> ApiError:
    # In a union, the member of the right type has the most useful error.
    chosen = min(error.errors(), key=lambda each: each["type"].endswith("_type"))
    path = [str(part) for i, part in enumerate(chosen["loc"][1:]) if i == 0 or not UNION_TAG.fullmatch(str(part))]
    if chosen["type"] == "json_invalid":
        why = f"The body is not valid JSON: {chosen['ctx']['error']} at character {path[0]}."
        return ApiError(400, why, code="invalid_json")
    message = f"{'.'.join(path) or 'The body'}: {chosen['msg']}."
    return ApiError(400, message, param=path[0] if path else None, code=chosen["type"])
