"""HTTP answers of limited size: what a server sends is read whole, but never more than fits into memory."""

from __future__ import annotations

from typing import Any

import httpx2

LARGEST = 16 << 20
"""Bytes of an answer, decompressed, that are read."""
ONE_REQUEST_EACH = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
"""A connection for each request: servers may close one that is kept, and the request that follows is lost then."""
_TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
"""Headers that tell how an answer travelled, and no longer hold for the text that was read."""


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
