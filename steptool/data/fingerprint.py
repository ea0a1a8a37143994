"""What a run reads from outside, as one digest."""

from __future__ import annotations

import hashlib
import json

from steptool.config import Config
from steptool.data.files import sources
from steptool.storage.remote import mark, named


def fingerprint(config: Config) -> str:
    """Digest of all that the configuration names, which changes with the content of a file under the same name.

    Raises IngestError for data that is not there.
    """
    data = [source.model_dump() for source in sources(config.data)]
    others = {place: mark(place) for place in named(config)}
    return hashlib.sha256(json.dumps([data, others], sort_keys=True).encode()).hexdigest()
