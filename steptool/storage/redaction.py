"""Removes keys from texts before they are stored: servers may repeat a request's key in answers and errors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

MIN_SECRET = 8
"""Characters of the shortest key that counts as a secret. Servers on one's own machine take keys such as "token" or
"1", whose removal would only damage what they say."""
MARK = "[key]"
"""What stands in place of a key."""


class Redactor:
    """Replaces secrets in text and in JSON values by a mark."""

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
