"""The tasks of a round's episodes: they are played, their steps are scored, and the rewards are checked before a model
learns from them."""

import dataclasses
import json
from typing import NamedTuple

from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.artifacts.lineage import COSTS
from steptool.artifacts.metrics import Stopwatch, say
from steptool.config import Config
from steptool.storage.transfer import fetch, localize
from tasks.runtime.artifacts import Model, Parquet, Shard, Tasks, download, download_all, download_policy, make_folder
from tasks.runtime.stage import stage

REWARDS_FILE, PAGE, FIGURES = "rewards.parquet", "audit.html", "audit.json"


@stage("rollout", cached=True)
def rollout(shard: int, round_index: int, config: Config, model: Model, base: Model, tasks: Tasks) -> Shard:
    """Sample a shard of a round's episodes. `base` is the model that an adapter belongs to."""
    watch = Stopwatch("rollout", round_index)
    from steptool.pipeline.episodes import TaskSet, open_learner, play_shard

    config = localize(config, make_folder("fetched"), "tools.toolbench.cache")
    task_set = TaskSet(download(tasks))
    with open_learner(*download_policy(model, base), config, round_index) as policy:
        return Shard(str(play_shard(policy, task_set, config, round_index, shard, make_folder("rollout"), watch)))


class AnnotateOutputs(NamedTuple):
    """The rewards of a file of trajectories, and what they cost."""

    rewards: Parquet
    costs: Parquet


@stage("annotate", cached=True)
def annotate(trajectories: Parquet, config: Config, queries: Parquet) -> AnnotateOutputs:
    """Score the steps of a file of trajectories by the configured annotator."""
    from steptool.pipeline.episodes import score_file

    folder = score_file(download(trajectories), download(queries), config, -1, make_folder("annotate"))
    return AnnotateOutputs(Parquet(str(folder / "rewards.parquet")), Parquet(str(folder / "costs.parquet")))


@stage("annotate", cached=True)
def annotate_shard(shard: Shard, round_index: int, config: Config, queries: Parquet) -> Shard:
    """Score the steps of a shard of a round."""
    from steptool.pipeline.episodes import EPISODES, score_file

    episodes = download(shard) / EPISODES
    return Shard(str(score_file(episodes, download(queries), config, round_index, make_folder("annotate"))))


class AuditOutputs(NamedTuple):
    """The episodes of a round, the rewards to learn from and what both cost, each in one file."""

    trajectories: Parquet
    rewards: Parquet
    costs: Parquet


class ReviewOutputs(NamedTuple):
    """Rewards, what they cost, and their audit as a page and as figures."""

    rewards: Parquet
    costs: Parquet
    page: FlyteFile
    figures: FlyteFile


@stage("audit", cached=True)
def audit(
    round_index: int, config: Config, queries: Parquet, episode_shards: list[Shard], reward_shards: list[Shard]
) -> AuditOutputs:
    """Join the shards of a round, and stop where its rewards are beyond a threshold."""
    from steptool.pipeline.episodes import audit_round

    audited = audit_round(
        download_all(episode_shards),
        download_all(reward_shards),
        download(queries),
        localize(config, make_folder("fetched"), "rewards.audit.previous"),
        round_index,
        make_folder("joined"),
        lambda page: Deck("rewards", page),
    )
    return AuditOutputs(Parquet(str(audited.trajectories)), Parquet(str(audited.rewards)), Parquet(str(audited.costs)))


@stage("review")
def review_rewards(
    output: str,
    config: Config,
    queries: Parquet,
    trajectories: Parquet,
    rewards: Parquet,
    costs: Parquet,
    compare: str,
) -> ReviewOutputs:
    """Audit the rewards of a file of trajectories and put them with the audit into a folder or url."""
    from steptool.report.rewards_page import build_rewards_page, write_sentences
    from steptool.rewards.audit import audit_files
    from steptool.storage.transfer import deliver

    folder, rewards_file = make_folder("audit"), download(rewards)
    config = localize(config, make_folder("fetched"), "rewards.audit.previous")
    other = fetch(compare, make_folder("compared")) if compare else None
    result = audit_files(download(queries), download(trajectories), rewards_file, config, other)
    html = build_rewards_page(result, f"The rewards by {result.annotator}")
    (folder / PAGE).write_text(html, encoding="utf-8")
    (folder / FIGURES).write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n", encoding="utf-8")
    Deck("rewards", html)
    for sentence in write_sentences(result):
        say("audit", sentence)
    files = {REWARDS_FILE: rewards_file, COSTS: download(costs), PAGE: folder / PAGE, FIGURES: folder / FIGURES}
    places = deliver(files, output)
    return ReviewOutputs(
        Parquet(places[REWARDS_FILE]), Parquet(places[COSTS]), FlyteFile(places[PAGE]), FlyteFile(places[FIGURES])
    )
