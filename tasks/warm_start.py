"""The base model and its supervised fine-tuning on demonstrations."""

from pathlib import Path
from typing import NamedTuple

from flytekit.types.file import FlyteFile

from steptool.artifacts.layout import METRICS
from steptool.artifacts.metrics import count_metrics
from steptool.artifacts.progress import Stopwatch, Ticker, say
from steptool.config import Config
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, download, make_folder, write_costs
from tasks.runtime.stage import stage


class Prepared(NamedTuple):
    """The base model and what it can take of the data.

    The queries whose prompts fit its context, the demonstrations with their tokens, the quarantine with those that
    were left out, its counts as metrics, and what it cost.
    """

    model: Model
    queries: Parquet
    lessons: Parquet
    quarantine: FlyteFile
    metrics: Parquet
    costs: Parquet


class WarmStarted(NamedTuple):
    """The model to start from, the metrics of its training, and what it cost."""

    model: Model
    metrics: Parquet
    costs: Parquet


@stage("prepare", cached=True)
def prepare(config: Config, queries: Parquet, demonstrations: Parquet, quarantine: FlyteFile) -> Prepared:
    """Put the base model in place, try it, check that prompts fit its context, and encode the demonstrations.

    Demonstrations that the model cannot learn from are counted and put into the quarantine.
    """
    watch = Stopwatch("prepare")
    from steptool.artifacts.lineage import sign
    from steptool.artifacts.queries import read_queries
    from steptool.contracts.tables import read_records, write_records
    from steptool.models.load import load_codec, load_model, prepare_base
    from steptool.policies.trial import try_model
    from steptool.records import Metric, Query, Trajectory
    from steptool.training.demonstrations import encode_demonstrations, iterate_texts, select_fitting

    folder = make_folder("base")
    read = read_queries(download(queries))
    recorded = read_records(download(demonstrations), Trajectory)
    chosen = localize(config, make_folder("fetched"), "policy.base").policy
    base = prepare_base(chosen, iterate_texts(read, recorded), config.seed, folder)
    sign(base, None, "base", [], note=config.policy.base)
    codec = load_codec(base, config.policy.chat_format)
    kept = select_fitting(read, codec, config)
    try_model(load_model(base), codec, kept, config)
    lessons = encode_demonstrations(kept, recorded, codec, config.policy.max_context)
    say("prepare", f"base model '{config.policy.base}', {len(kept)} of {len(read)} prompts fit its context")
    for name, number in lessons.counts().items():
        say("prepare", f"{name}: {number}")
    lessons.check(config.warm_start)
    target = make_folder("prepared")
    counts = {"queries": len(kept), "left out": len(read) - len(kept), **lessons.counts()}
    return Prepared(
        Model(str(base)),
        Parquet(str(write_records(target / "queries.parquet", kept, Query))),
        Parquet(str(write_records(target / "lessons.parquet", lessons.encoded, Trajectory))),
        FlyteFile(str(lessons.add_to_quarantine(Path(download(quarantine)), target / "quarantine.jsonl"))),
        Parquet(str(write_records(target / METRICS, count_metrics("prepare", counts), Metric))),
        write_costs(target, watch.cost()),
    )


@stage("warm_start", cached=True)
def warm_start(config: Config, base: Model, queries: Parquet, lessons: Parquet) -> WarmStarted:
    """Fine-tune the base model on the demonstrations, whose tokens `prepare` has made."""
    watch = Stopwatch("warm_start")
    from steptool.artifacts.lineage import sign
    from steptool.contracts.tables import read_records, write_records
    from steptool.records import Metric, Trajectory
    from steptool.training.demonstrations import count_tokens
    from steptool.training.warm_start import warm_start as fine_tune
    from tasks.runtime.checkpoints import Checkpoints

    start, folder = download(base), make_folder("warm_start")
    examples = read_records(download(lessons), Trajectory)
    say("warm_start", f"{config.warm_start.steps} steps on {len(examples)} demonstrations")
    ticker = Ticker("warm_start", config.warm_start.steps, "steps")
    checkpoints = Checkpoints("warm_start")
    metrics = fine_tune(
        start,
        examples,
        config.warm_start,
        config.policy,
        config.seed,
        folder,
        tokens_per_pass=config.ppo.tokens_per_pass,
        gradient_checkpointing=config.ppo.gradient_checkpointing,
        on_step=ticker,
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    sign(folder, start, "warm_start", [download(queries), download(lessons)])
    cost = watch.cost(count_tokens(examples, config.warm_start))
    figures = make_folder("figures")
    say("warm_start", "finished", seconds=cost.seconds)
    return WarmStarted(
        Model(str(folder)),
        Parquet(str(write_records(figures / METRICS, metrics, Metric))),
        write_costs(figures, cost),
    )
