"""Who may talk to the server: Host, Origin and token, decided before a connection is accepted."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Literal
from urllib.parse import urlsplit

from longvid.errors import InputError

COOKIE = "longvid_token"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

Refusal = Literal["host", "origin", "token"]


def is_loopback(host: str) -> bool:
    """Whether a bind address is reachable from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server.

    host: bind address. token: None only on loopback. origins: further origins whose pages may connect, such as
    "https://example.org"; their hosts are accepted as Host, too.

    Raises InputError for an address off loopback without a token, a short token, or an origin that is none.
    """

    host: str
    token: str | None = None
    origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"host={self.host!r}: is reachable from other machines and needs a token; "
                f"add --token auto, or bind to 127.0.0.1"
            )
        if self.token is not None and (
            len(self.token) < 16 or not self.token.isascii() or not self.token.isprintable()
        ):
            raise InputError("token: must be at least 16 printable ASCII characters; --token auto makes one")
        for origin in self.origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.hostname
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise InputError(f"allowed-origin={origin!r}: must be scheme and host, such as https://example.org")

    def refusal(
        self, headers: Mapping[str, str], query_token: str | None, *, open_to_all: bool = False
    ) -> Refusal | None:
        """Why a request is refused, or None. headers: lower-case names. open_to_all: no token needed."""
        host = headers.get("host", "")
        if not self._host_ok(host):
            return "host"
        origin = headers.get("origin")
        if origin is not None and not self._origin_ok(origin, host):
            return "origin"
        if self.token is not None and not open_to_all and not self._token_ok(headers, query_token):
            return "token"
        return None

    def token_matches(self, given: str) -> bool:
        """Compare in constant time."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def _host_ok(self, header: str) -> bool:
        """A page of another site that has pointed its own name here (DNS rebinding) shows that name as Host."""
        name = _host_name(header)
        if name is None:
            return False
        if name in _LOOPBACK_NAMES or name in {urlsplit(origin).hostname for origin in self.origins}:
            return True
        if is_loopback(self.host):
            return False
        if name in (self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()):
            return True
        # Rebinding needs a name: a literal address cannot be pointed anywhere else.
        return _is_address(name)

    def _origin_ok(self, origin: str, host: str) -> bool:
        if origin in self.origins:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    def _token_ok(self, headers: Mapping[str, str], query_token: str | None) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [query_token, bearer if scheme.lower() == "bearer" else None, _cookie(headers.get("cookie", ""))]
        return any(self.token_matches(token) for token in given if token)


def _host_name(header: str) -> str | None:
    try:
        parts = urlsplit(f"//{header}")
        parts.port  # noqa: B018  (raises for a port that is none)
    except ValueError:
        return None
    plain = not (parts.path or parts.query or parts.fragment or parts.username or parts.password)
    return parts.hostname.lower().rstrip(".") if parts.hostname and plain else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str) -> str | None:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return None if morsel is None else morsel.value


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """Origins as a command line gives them, a closing slash forgiven."""
    return frozenset(origin.rstrip("/") for origin in origins)
