"""The records that an ingest has set aside."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from steptool.data.parsing import IngestLog


def read_quarantine(log: IngestLog) -> list[dict[str, Any]]:
    """What the log writes: one object for each record, with its reason."""
    with TemporaryDirectory() as folder:
        return [json.loads(line) for line in log.write(Path(folder, "quarantine.jsonl")).open(encoding="utf-8")]
