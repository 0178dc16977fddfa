"""Host, Origin, token: who is let in."""

from __future__ import annotations

import pytest

from longvid.errors import InputError
from longvid.serve.access import Access, is_loopback, parse_origins

TOKEN = "0123456789abcdef"
LOCAL = Access("127.0.0.1")
OPEN = Access("0.0.0.0", TOKEN, frozenset({"https://films.example"}))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_off_loopback_a_token_is_demanded() -> None:
    with pytest.raises(InputError, match="needs a token; add --token auto"):
        Access("0.0.0.0")


@pytest.mark.parametrize("token", ["", "short", "sixteen chars in \n it", "ключ-ключ-ключ-ключ"])
def test_weak_tokens_are_refused(token: str) -> None:
    with pytest.raises(InputError, match="16 printable ASCII"):
        Access("127.0.0.1", token)


@pytest.mark.parametrize("origin", ["films.example", "ftp://films.example", "https://films.example/page", "null", "*"])
def test_origins_must_be_origins(origin: str) -> None:
    with pytest.raises(InputError, match="allowed-origin"):
        Access("127.0.0.1", None, frozenset({origin}))


def test_a_closing_slash_is_forgiven() -> None:
    assert parse_origins(["https://films.example/"]) == {"https://films.example"}


@pytest.mark.parametrize(
    ("host", "origin", "why"),
    [
        ("127.0.0.1:8765", None, None),
        ("localhost:8765", None, None),
        ("[::1]:8765", None, None),
        ("LOCALHOST", None, None),
        ("127.0.0.1:8765", "http://127.0.0.1:8765", None),
        ("evil.example:8765", None, "host"),  # DNS rebinding
        ("evil.example:8765", "http://evil.example:8765", "host"),
        ("192.168.1.4:8765", None, "host"),
        ("127.0.0.1.evil.example", None, "host"),
        ("", None, "host"),
        ("127.0.0.1:99999", None, "host"),
        ("evil@127.0.0.1", None, "host"),
        ("127.0.0.1:8765", "http://evil.example", "origin"),
        ("127.0.0.1:8765", "http://127.0.0.1:3000", "origin"),  # another page of this machine
        ("127.0.0.1:8765", "null", "origin"),
        ("127.0.0.1:8765", "file://", "origin"),
    ],
)
def test_on_loopback(host: str, origin: str | None, why: str | None) -> None:
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    assert LOCAL.refusal(headers, None) == why


@pytest.mark.parametrize(
    ("host", "origin", "why"),
    [
        ("192.168.1.4:8765", "http://192.168.1.4:8765", None),
        ("films.example", "https://films.example", None),
        ("192.168.1.4:8765", "https://films.example", None),
        ("evil.example", "http://evil.example", "host"),
        ("192.168.1.4:8765", "http://evil.example", "origin"),
    ],
)
def test_off_loopback(host: str, origin: str, why: str | None) -> None:
    assert OPEN.refusal({"host": host, "origin": origin}, TOKEN) == why


@pytest.mark.parametrize(
    ("headers", "query", "why"),
    [
        ({}, None, "token"),
        ({}, "wrong-wrong-wrong", "token"),
        ({}, TOKEN[:-1], "token"),
        ({}, "ü", "token"),
        ({}, TOKEN, None),
        ({"authorization": f"Bearer {TOKEN}"}, None, None),
        ({"authorization": f"bearer {TOKEN}"}, None, None),
        ({"authorization": f"Basic {TOKEN}"}, None, "token"),
        ({"cookie": f"a=b; longvid_token={TOKEN}"}, None, None),
        ({"cookie": "longvid_token=nonsense"}, None, "token"),
        ({"cookie": "=;;==,"}, None, "token"),
    ],
)
def test_tokens(headers: dict[str, str], query: str | None, why: str | None) -> None:
    assert OPEN.refusal({"host": "10.0.0.1", **headers}, query) == why


def test_health_is_open_but_only_to_known_hosts() -> None:
    assert OPEN.refusal({"host": "10.0.0.1"}, None, open_to_all=True) is None
    assert OPEN.refusal({"host": "evil.example"}, None, open_to_all=True) == "host"
