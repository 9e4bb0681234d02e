"""The token that every call must carry where the server was given one, and how a caller shows it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .hosts import address_of

COOKIE = "avila_token"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What a client may call itself."""
NAMELESS = ("local", "unknown")
"""What a caller is called whose address is not known, or is none."""
_COOKIE_VALUE = re.compile(rf"(?:^|;)\s*{COOKIE}=([0-9a-f]{{64}})\s*(?:;|$)")


@dataclass(frozen=True)
class Shown:
    """What a call shows. valid: it is the token, or none is needed. user: the name that Basic goes with, if it is one."""

    valid: bool
    user: str | None = None


class Credentials:
    """The token, and what shows it. Everything is compared in constant time, as digests of one length."""

    def __init__(self, token: str | None) -> None:
        self._digest = None if token is None else _digest(token)
        key = b"" if token is None else token.encode("utf-8", "surrogateescape")
        self._cookie = hmac.new(key, b"avila session", hashlib.sha256).hexdigest()

    @property
    def needed(self) -> bool:
        """Whether calls must carry it."""
        return self._digest is not None

    @property
    def cookie(self) -> str:
        """The value of the cookie of a browser that has signed in. The token cannot be told from it."""
        return self._cookie

    def accept(self, token: str) -> bool:
        """Whether this is the token."""
        return self._digest is not None and hmac.compare_digest(_digest(token), self._digest)

    def read(self, authorizations: Sequence[str], cookies: Sequence[str]) -> Shown:
        """What the headers Authorization and Cookie of a call show."""
        if not authorizations:
            return Shown(not self.needed or any(map(self._has_cookie, cookies)))
        scheme, _, rest = authorizations[0].strip().partition(" ")
        user, token = _basic(rest) if scheme.lower() == "basic" else (None, rest.strip())
        if not self.needed:
            return Shown(True, user)
        known = scheme.lower() in ("basic", "bearer") and len(authorizations) == 1
        return Shown(self.accept(token) and known, user)

    def _has_cookie(self, header: str) -> bool:
        match = _COOKIE_VALUE.search(header)
        return match is not None and hmac.compare_digest(match[1], self._cookie)


def _basic(text: str) -> tuple[str | None, str]:
    """User and password; a user that is no name is none, nor one that is what callers without a name are called."""
    try:
        user, _, password = base64.b64decode(text.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        return None, ""
    named = NAME.fullmatch(user) is not None and user not in NAMELESS and address_of(user) is None
    return (user if named else None), password


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
