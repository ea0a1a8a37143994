"""What a round says of its episodes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steptool.artifacts.metrics import Stopwatch
from steptool.config import Config, CreditConfig, RewardConfig
from steptool.config.base import ConfigError
from steptool.data.ingest import ingest
from steptool.environments.desk.tasks import draw_desk_queries
from steptool.pipeline.episodes import EPISODES, REWARDS, TaskSet, play, play_shard, score_file
from steptool.pipeline.learning import describe_outcome
from steptool.policies.text_policies import ScriptedPolicy
from steptool.records import StepReward, ToolCall, Trajectory
from steptool.records.tables import read_records

TOOLS = '''
def count(item: str) -> int:
    """Pieces in stock.

    Args:
        item: what to count
    """
    return 13


TOOLS = [count]
'''


@pytest.mark.parametrize(
    ("answers", "rate", "outcome"),
    [
        (["13", "7"], "pass rate 0.500", "IsSolved 0.500 by the annotator rules"),
        # The annotator does not know either: an answer that it cannot compare is unsure, and counts half.
        ([None, None], "pass rate unknown: the environment gives no verdict", "IsSolved 0.500 by the annotator rules"),
    ],
)
def test_answers_are_compared_with_references_where_the_tools_give_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: list[str | None], rate: str, outcome: str
) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    tasks = [
        {"instruction": f"Count {n}.", "split": "train", "reference": {"answer": answer} if answer else {}}
        for n, answer in enumerate(answers)
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    data = {"source": "jsonl", "environment": "functions", "paths": [f"{tmp_path}/tasks.jsonl"]}
    tools, rollout = {"functions": f"{tmp_path}/tools.py:TOOLS"}, {"episodes": 2, "shards": 1}
    config = Config.model_validate({"data": data, "tools": tools, "rollout": rollout})
    read = ingest(config, tmp_path / "data", for_training=False)
    task_set = TaskSet.write(tmp_path / "tasks", read.queries_path, read.demonstrations_path, config)
    finish = ToolCall("Finish", {"return_type": "give_answer", "final_answer": "13"})
    policy = ScriptedPolicy(lambda *_: [ToolCall("count", {"item": "cup"}), finish])
    for name in ("shard", "scores"):
        (tmp_path / name).mkdir()
    play_shard(policy, task_set, config, 0, 0, tmp_path / "shard", Stopwatch("rollout"))
    assert f"shard 1 of 1, {rate}" in capsys.readouterr().out
    score_file(tmp_path / "shard" / EPISODES, read.queries_path, config, 0, tmp_path / "scores")
    episodes = read_records(tmp_path / "shard" / EPISODES, Trajectory)
    assert describe_outcome(episodes, read_records(tmp_path / "scores" / REWARDS, StepReward)) == outcome


def test_states_are_stored_where_they_are_needed_and_an_environment_without_is_refused() -> None:
    credit = {"state": "digest", "value": "group_mean"}
    config = Config.model_validate({"credit": credit, "rollout": {"samples_per_query": 2}})
    query = draw_desk_queries(config)[0]
    policy = ScriptedPolicy(lambda query, sample: [ToolCall("find_user", {"name": "nobody"})])
    (episode,) = play(policy, [query], config)
    assert [len(step.state or "") for step in episode.steps] == [16, 16]  # the call, and giving up
    without = config.model_copy(update={"credit": CreditConfig()})
    assert [step.state for step in play(policy, [query], without)[0].steps] == [None, None]
    replayed = replace(query, environment="replay")
    with pytest.raises(ConfigError, match=r"credit.state: digest needs an environment .* \('replay'\) does not"):
        play(policy, [replayed], config)
    progress = without.model_copy(update={"rewards": RewardConfig(contribution="progress")})
    assert [step.state for step in play(policy, [replayed], progress)[0].steps] == [None, None]
