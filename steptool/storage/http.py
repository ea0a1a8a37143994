"""Answers of HTTP servers: they are read up to a size, and kept without the keys that requests were sent with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import httpx2

LARGEST = 16 << 20
"""Bytes of an answer, decompressed, that are read."""
ONE_REQUEST_EACH = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
"""A connection for each request: servers may close one that is kept, and the request that follows is lost then."""
_TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that describe how an answer was sent. They do not hold for the text that was read."""
MIN_SECRET = 8
"""Characters of the shortest key that counts as a secret. Servers on one's own machine take keys such as "token" or
"1", whose removal would only damage what they say."""
MARK = "[key]"
"""What stands in place of a key."""


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that reads answers up to a size, counted after decompression."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """The whole answer. Raises ValueError for one that is too large, without reading it to its end."""
        response = await super().send(request, stream=True, **options)
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > LARGEST:
                    raise ValueError(f"an answer of more than {LARGEST >> 20} MB")
        finally:
            await response.aclose()
        headers = [(k, v) for k, v in response.headers.multi_items() if k.lower() not in _TRANSFER_HEADERS]
        return httpx2.Response(response.status_code, headers=headers, content=bytes(body), request=request)


class Redactor:
    """Replaces secrets in text and in JSON values by a mark.

    Servers may repeat a request's key in answers and errors.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        """Values with fewer than MIN_SECRET characters are no secrets."""
        usable = {secret for secret in secrets if len(secret) >= MIN_SECRET}
        forms = {form for secret in usable for form in _list_written_forms(secret)}
        # The longest first: a secret may be a part of another.
        self._secrets = sorted(usable, key=len, reverse=True)
        self._forms = sorted(forms, key=len, reverse=True)

    def redact_text(self, text: str) -> str:
        """The text without secrets: as they are, as they stand in a url, and in any escape where the text is JSON."""
        if not self._secrets:
            return text
        for form in self._forms:
            text = text.replace(form, MARK)
        if "\\" not in text or text.lstrip()[:1] not in ("{", "["):
            return text
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            return text
        redacted = self.redact_value(document)
        return text if redacted == document else json.dumps(redacted, ensure_ascii=False)

    def redact_value(self, value: Any) -> Any:
        """The JSON value without secrets in any of its strings, names of fields among them."""
        if not self._secrets:
            return value
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, MARK)
            return value
        if isinstance(value, list):
            return [self.redact_value(part) for part in value]
        if isinstance(value, dict):
            return {self.redact_value(name): self.redact_value(part) for name, part in value.items()}
        return value


def _list_written_forms(secret: str) -> set[str]:
    """The secret as it is, as the inside of a JSON string, and as a part of a url."""
    escaped = json.dumps(secret)[1:-1]
    unescaped = json.dumps(secret, ensure_ascii=False)[1:-1]
    return {secret, escaped, unescaped, escaped.replace("/", "\\/"), quote(secret, safe=""), quote(secret)}
