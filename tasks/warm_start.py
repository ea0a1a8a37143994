"""The base model and its supervised fine-tuning on demonstrations."""

from typing import NamedTuple

from steptool.artifacts.history import count_rows, extend
from steptool.artifacts.progress import Stopwatch, Ticker, say
from steptool.config import Config
from steptool.contracts.tables import read_costs
from steptool.storage.remote import localize
from tasks.runtime.artifacts import Model, Parquet, download, make_folder
from tasks.runtime.stage import stage


class Prepared(NamedTuple):
    """The base model, the queries whose prompts fit its context, and the history of the run until here."""

    model: Model
    queries: Parquet
    history: Parquet


class WarmStarted(NamedTuple):
    """The model to start from and the history of the run until here."""

    model: Model
    history: Parquet


@stage("prepare", cached=True)
def prepare(config: Config, queries: Parquet, demonstrations: Parquet, history: Parquet) -> Prepared:
    """Put the base model in place and check that every prompt fits its context."""
    watch = Stopwatch("prepare")
    from steptool.artifacts.lineage import sign
    from steptool.artifacts.queries import read_queries
    from steptool.chat.codec import ChatCodec
    from steptool.contracts.tables import read_records, write_records
    from steptool.models.load import load_tokenizer, prepare_base
    from steptool.records import Query, Trajectory
    from steptool.training.demonstrations import fitting, texts

    folder = make_folder("base")
    asked = read_queries(download(queries))
    chosen = localize(config, make_folder("fetched"), "policy.base").policy
    base = prepare_base(chosen, texts(asked, read_records(download(demonstrations), Trajectory)), config.seed, folder)
    sign(base, None, "base", [], note=config.policy.base)
    kept = fitting(asked, ChatCodec(load_tokenizer(base), config.policy.chat_format), config)
    target = write_records(make_folder("prepared") / "queries.parquet", kept, Query)
    counts = {"queries": len(kept), "left out": len(asked) - len(kept)}
    told = extend(download(history), count_rows("prepare", counts), [watch.cost()], target.with_name("history.parquet"))
    say("prepare", f"base model '{config.policy.base}', {len(kept)} of {len(asked)} prompts fit its context")
    return Prepared(Model(str(base)), Parquet(str(target)), Parquet(str(told)))


@stage("warm_start", cached=True)
def warm_start(config: Config, base: Model, queries: Parquet, demonstrations: Parquet, history: Parquet) -> WarmStarted:
    """Fine-tune the base model on the demonstrations."""
    watch = Stopwatch("warm_start")
    from steptool.artifacts.lineage import sign
    from steptool.artifacts.queries import read_queries
    from steptool.chat.codec import ChatCodec
    from steptool.contracts.tables import read_records
    from steptool.models.load import load_tokenizer
    from steptool.records import Trajectory
    from steptool.training.demonstrations import lessons, tokens_seen
    from steptool.training.warm_start import warm_start as fine_tune
    from tasks.runtime.checkpoints import Checkpoints

    start, folder = download(base), make_folder("warm_start")
    shown = read_records(download(demonstrations), Trajectory)
    codec = ChatCodec(load_tokenizer(start), config.policy.chat_format)
    examples = lessons(read_queries(download(queries)), shown, codec)
    say("warm_start", f"{config.warm_start.steps} steps on {len(examples)} demonstrations")
    ticker = Ticker("warm_start", config.warm_start.steps, "steps")
    checkpoints = Checkpoints("warm_start")
    rows = fine_tune(
        start,
        examples,
        config.warm_start,
        config.policy,
        config.seed,
        folder,
        on_step=ticker,
        checkpoints=checkpoints.folder,
        on_checkpoint=checkpoints.save,
    )
    sign(folder, start, "warm_start", [download(queries), download(demonstrations)])
    cost = watch.cost(tokens_seen(examples, config.warm_start))
    told = extend(download(history), rows, [cost], make_folder("told") / "history.parquet")
    say("warm_start", "finished", costs=read_costs(told))
    return WarmStarted(Model(str(folder)), Parquet(str(told)))
