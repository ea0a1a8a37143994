"""The tasks that read a data source into queries and demonstrations."""

from typing import NamedTuple

from flytekit.types.file import FlyteFile

from steptool.artifacts.lineage import METRICS
from steptool.artifacts.metrics import Stopwatch, count_metrics, say
from steptool.config import Config
from steptool.records import Metric
from steptool.records.tables import write_records
from steptool.storage.transfer import localize
from tasks.runtime.artifacts import Parquet, Tasks, download, make_folder, write_costs
from tasks.runtime.stage import stage


class IngestOutputs(NamedTuple):
    """Queries of all splits, demonstrations, rewards that were recorded with them, the records set aside for a fault,
    and the counts of what was read, kept and dropped, for people and as metrics of the run."""

    tasks: Tasks
    queries: Parquet
    demonstrations: Parquet
    rewards: Parquet
    quarantine: FlyteFile
    counts: FlyteFile
    metrics: Parquet
    costs: Parquet


class IngestFiles(NamedTuple):
    """The files of an ingest in the user's folder."""

    queries: Parquet
    demonstrations: Parquet
    rewards: Parquet
    quarantine: FlyteFile
    counts: FlyteFile


@stage("fingerprint")
def fingerprint(config: Config, output: str, for_training: bool = True) -> str:
    """Digest of the data that the configuration names. It changes if a file changes, even under the same name.

    Checks first that the run's folder can be written. Without training the folder is one for an evaluation.
    """
    from steptool.artifacts.lineage import EVALUATION, TRAINING
    from steptool.data.ingest import fingerprint_sources as digest
    from steptool.storage.transfer import check_target

    check_target(output, TRAINING if for_training else EVALUATION)
    return digest(config)


@stage("ingest", cached=True)
def ingest(config: Config, sources: str, for_training: bool = True, may_be_empty: bool = False) -> IngestOutputs:
    """Read or draw the tasks and check them. For training no split may stay empty.

    `sources` is the fingerprint. Because of it Flyte does not reuse a cached result if the data has changed.
    """
    watch = Stopwatch("ingest")
    from steptool.data.ingest import ingest as read_source
    from steptool.pipeline.episodes import TaskSet

    folder = make_folder("ingested")
    local_config = localize(config, make_folder("fetched"), "data.paths", "data.recorded_answers")
    result = read_source(local_config, folder, for_training, may_be_empty)
    metrics = write_records(folder / METRICS, count_metrics("ingest", result.counts), Metric)
    totals = [f"{name} {count}" for name, count in result.counts.items() if ":" not in name]
    say("ingest", f"{config.data.source}: {', '.join(totals)}")
    for name, count in result.counts.items():
        if ":" in name:
            say("ingest", f"{name}: {count}")
    tasks = TaskSet.write(folder / "tasks", result.queries_path, result.demonstrations_path, config)
    return IngestOutputs(
        Tasks(str(tasks.folder)),
        Parquet(str(result.queries_path)),
        Parquet(str(result.demonstrations_path)),
        Parquet(str(result.rewards_path)),
        FlyteFile(str(result.quarantine_path)),
        FlyteFile(str(result.counts_path)),
        Parquet(str(metrics)),
        write_costs(folder, watch.measure_cost()),
    )


@stage("deliver")
def deliver_ingested(
    output: str, queries: Parquet, demonstrations: Parquet, rewards: Parquet, quarantine: FlyteFile, counts: FlyteFile
) -> IngestFiles:
    """Put what was read into a folder or url. Fails after that if no query was kept."""
    import json

    from steptool.data import ingest as names
    from steptool.data.parsing import IngestError, summarise_counts
    from steptool.storage.transfer import deliver

    numbers = json.loads(download(counts).read_text(encoding="utf-8"))
    files = {
        names.QUERIES_FILE: download(queries),
        names.DEMONSTRATIONS_FILE: download(demonstrations),
        names.REWARDS_FILE: download(rewards),
        names.QUARANTINE_FILE: download(quarantine),
        names.COUNTS_FILE: download(counts),
    }
    places = deliver(files, output)
    if not any(numbers.values()):
        raise IngestError("data.paths: expected tasks or recordings, got files that hold none; see what they contain")
    if not numbers.get("queries kept"):
        raise IngestError(f"{summarise_counts(numbers)}. No query is left. See {output}/{names.QUARANTINE_FILE}")
    return IngestFiles(
        Parquet(places[names.QUERIES_FILE]),
        Parquet(places[names.DEMONSTRATIONS_FILE]),
        Parquet(places[names.REWARDS_FILE]),
        FlyteFile(places[names.QUARANTINE_FILE]),
        FlyteFile(places[names.COUNTS_FILE]),
    )
