"""From the source of the tasks to queries and demonstrations."""

from typing import NamedTuple

from flytekit import task
from flytekit.types.file import FlyteFile

from steptool.config import Config
from steptool.history import count_rows, extend
from steptool.progress import Stopwatch, say
from tasks.artifacts import IMAGE, Parquet, scratch


class Ingested(NamedTuple):
    """Queries of all splits, demonstrations, the history of the run until here, and records set aside for a fault."""

    queries: Parquet
    demonstrations: Parquet
    history: Parquet
    quarantine: FlyteFile


@task(container_image=IMAGE)
def ingest(config: Config, output: str) -> Ingested:
    """Read or draw the tasks and check them, and check that the run's folder can be written."""
    watch = Stopwatch("ingest")
    from steptool.data.ingest import ingest as read_source
    from steptool.report.folder import check_target

    check_target(output)
    folder = scratch("ingested")
    found = read_source(config, folder)
    history = extend(None, count_rows("ingest", found.counts), [watch.cost()], folder / "history.parquet")
    told = [f"{name} {count}" for name, count in found.counts.items() if ":" not in name]
    say("ingest", f"{config.data.source}: {', '.join(told)}")
    return Ingested(
        Parquet(str(found.queries_path)),
        Parquet(str(found.demonstrations_path)),
        Parquet(str(history)),
        FlyteFile(str(found.quarantine_path)),
    )
