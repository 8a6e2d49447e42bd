"""JSON web tokens as Supabase signs them for its roles."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

_LIFETIME_SECONDS = 10 * 365 * 24 * 3600


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(secret: str, role: str, claims: Mapping[str, object]) -> str:
    """Make an HS256 token for a role, valid for ten years as Supabase's keys are; claims may override all."""
    now = int(time.time())
    payload = {"iss": "supabase", "role": role, "iat": now, "exp": now + _LIFETIME_SECONDS, **claims}
    parts = [
        _encode(json.dumps(part, separators=(",", ":"), default=str).encode())
        for part in ({"alg": "HS256", "typ": "JWT"}, payload)
    ]
    text = ".".join(parts)
    return f"{text}.{_encode(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"
