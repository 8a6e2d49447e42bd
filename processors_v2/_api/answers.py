"""Answers as JSON: their body, their tag, and what is answered to whoever has it already."""

import hashlib
import json
from http import HTTPStatus

from fastapi import Request, Response

# A proxy may keep nothing that one user may see and another may not.
_HEADERS = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}


def to_json(value: object) -> str:
    """Return a value as JSON on one line."""
    try:
        return _dump(value)
    except ValueError:
        # A number in somebody's metadata that no float holds was read as infinity, for which JSON has no word.
        return _dump(json.loads(json.dumps(value), parse_constant=lambda _: None))


def answer(value: object, request: Request) -> Response:
    """Return the answer for a value: 304 without a body where the caller has it already.

    Args:
        value: What JSON can carry.
        request: May name what the caller has, in If-None-Match.
    """
    if_none_match = request.headers.get("if-none-match", "")
    body = to_json(value).encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    if _names(if_none_match, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _names(header: str, tag: str) -> bool:
    """Whether If-None-Match names the tag, compared weakly as RFC 9110 has it: a proxy that compresses weakens tags."""
    given = [part.strip().removeprefix("W/") for part in header.split(",")]
    return tag in given or given == ["*"]


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
