"""Whether the rewards can be trusted, before anything learns from them."""

import dataclasses
import json
from typing import NamedTuple

from flytekit import Deck
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import say
from steptool.config import Config
from steptool.contracts.tables import concatenate
from steptool.records import StepReward, Trajectory
from steptool.storage.remote import fetched, localize
from tasks.runtime.artifacts import Parquet, download, download_all, make_folder
from tasks.runtime.stage import stage

REWARDS_FILE, PAGE, FIGURES = "rewards.parquet", "audit.html", "audit.json"


class Audited(NamedTuple):
    """The episodes of a round and the rewards to learn from, each in one file."""

    trajectories: Parquet
    rewards: Parquet


class Reviewed(NamedTuple):
    """Rewards with their audit as a page and as figures."""

    rewards: Parquet
    page: FlyteFile
    figures: FlyteFile


@stage("audit", cached=True)
def audit(
    round_index: int, config: Config, queries: Parquet, trajectories: list[Parquet], rewards: list[Parquet]
) -> Audited:
    """Join the shards of a round, and stop where its rewards are beyond a threshold."""
    from steptool.artifacts import layout as names
    from steptool.report.rewards_page import rewards_page
    from steptool.rewards.audit_files import audit_files, check_thresholds

    joined = make_folder("joined")
    played = concatenate(download_all(trajectories), Trajectory, joined / names.of_round("trajectories", round_index))
    scored = concatenate(download_all(rewards), StepReward, joined / names.of_round("rewards", round_index))
    config = localize(config, make_folder("fetched"), "rewards.audit.previous")
    found = audit_files(download(queries), played, scored, config)
    Deck("rewards", rewards_page(found, f"The rewards of round {round_index + 1}"))
    check_thresholds(found, config.rewards.audit, f"round {round_index + 1}")
    return Audited(Parquet(str(played)), Parquet(str(scored)))


@stage("review")
def review_rewards(
    output: str, config: Config, queries: Parquet, trajectories: Parquet, rewards: Parquet, compare: str
) -> Reviewed:
    """Audit the rewards of a file of trajectories and put them with the audit into a folder or url."""
    from steptool.report.rewards_page import rewards_page, sentences
    from steptool.rewards.audit_files import audit_files
    from steptool.storage.delivery import deliver

    folder, scored = make_folder("audit"), download(rewards)
    config = localize(config, make_folder("fetched"), "rewards.audit.previous")
    other = fetched(compare, make_folder("compared")) if compare else None
    found = audit_files(download(queries), download(trajectories), scored, config, other)
    html = rewards_page(found, f"The rewards by {found.annotator}")
    (folder / PAGE).write_text(html, encoding="utf-8")
    (folder / FIGURES).write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
    Deck("rewards", html)
    for sentence in sentences(found):
        say("audit", sentence)
    return Reviewed(
        Parquet(deliver(scored, output, REWARDS_FILE)),
        FlyteFile(deliver(folder / PAGE, output, PAGE)),
        FlyteFile(deliver(folder / FIGURES, output, FIGURES)),
    )
