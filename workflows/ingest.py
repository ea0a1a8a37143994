"""From files of tasks and recordings, whatever their form, to queries and demonstrations as Parquet.

pyflyte run workflows/ingest.py ingest --config my.yaml --output data/mine
"""

from steptool.config import Config
from tasks.ingest import IngestFiles, deliver_ingested, fingerprint
from tasks.ingest import ingest as read_source
from tasks.runtime.stage import workflow


@workflow()
def ingest(config: Config, output: str) -> IngestFiles:
    """Read the tasks and recordings that a configuration names, and write what was kept, dropped and counted.

    Args:
        config: its section `data` says what to read (docs/bring-your-own-data.md); `workflows/train.py`
            reads the same from it.
        output: folder or url that receives the files; others there stay.
    """
    sources = fingerprint(config=config, output="", for_training=False)
    data = read_source(config=config, sources=sources, for_training=False, may_be_empty=True)
    return deliver_ingested(
        output=output,
        queries=data.queries,
        demonstrations=data.demonstrations,
        rewards=data.rewards,
        quarantine=data.quarantine,
        counts=data.counts,
    )
