"""The viewer of any set of trajectories: an HTML file that needs no network and no server; several for very many.

A file holds an index, one small row for each trajectory, and the trajectories themselves in compressed chunks. The
browser decodes the index when it opens the file, and a chunk when one of its trajectories is looked at.

The first half makes plain data of episodes, which steps.js renders: alone, or in pairs before and after training as the
report of a run shows them. The second half writes the files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from markupsafe import Markup

from steptool.config import RewardConfig
from steptool.records import FINISH, Advantage, Query, Step, StepReward, StepStatus, Trajectory
from steptool.records.columns import Row, decode_value
from steptool.records.tables import write_whole
from steptool.report.elements import choose_colours, load_templates, read_asset
from steptool.report.run_inputs import EpisodePair, ScoredEpisode
from steptool.report.viewer_pages import EpisodeFiles, PagePlan
from steptool.rewards.compose import compose

MAX_CHARACTERS = 6000
"""Characters of an observation that a page keeps."""
PAGE_SIZE = 50_000
"""Trajectories of a page: it stays quick with so many, and making it needs half a gigabyte of memory."""
CHUNK = 300_000
"""Characters of JSON that are compressed together: the browser decodes one chunk to show one trajectory."""
LISTED = 300
"""Characters of an instruction that the list shows and the quick search reads."""
LETTERS = ascii_uppercase
"""Names of the models in the page's address, in the order of the sources."""
OUTCOMES = {
    "fixed": "fixed: only after training",
    "broken": "broken: only before training",
    "both": "both: solved before and after",
    "neither": "neither: solved neither before nor after",
    "unknown": "unknown: no verdict",
    "alone": "alone: one episode, no counterpart",
}
"""What training did to a task: a name, and its description on the page. The verdicts before and after decide."""


def make_episode_data(episode: ScoredEpisode, config: Mapping[str, Any]) -> dict[str, Any]:
    """An episode with its steps and their scores. A score that is missing is None.

    Without advantages the rewards are composed from the scores as `config` says (its section `rewards`), if it does.
    """
    trajectory = episode.trajectory
    rewards = {r.step: r for r in episode.rewards if r.trajectory_id == trajectory.trajectory_id}
    advantages = {a.step: a for a in episode.advantages if a.trajectory_id == trajectory.trajectory_id}
    composed_rewards = {} if advantages else dict(enumerate(_compose(list(rewards.values()), trajectory.steps, config)))
    texts = _list_texts(trajectory)
    steps = [
        {
            **_make_step(step, texts[i]),
            **_make_scores(rewards.get(i)),
            **_make_credit(advantages.get(i), composed_rewards.get(i)),
        }
        for i, step in enumerate(trajectory.steps)
    ]
    return {
        "verdict": round_finite(episode.verdict),
        "origin": f"training, round {trajectory.round}" if trajectory.round >= 0 else "evaluation",
        "stop": str(trajectory.stop_reason),
        "answer": trajectory.final_answer,
        "tokens": trajectory.action_tokens,
        "steps": steps,
    }


def make_pair_data(examples: Sequence[EpisodePair], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The examples as JSON-ready data, those that training changed first.

    Where an episode was scored but not trained on, its rewards are composed as the run's configuration says.
    """
    tasks = [_make_task(e, config or {}) for e in examples]
    order = list(OUTCOMES)
    return {"outcomes": OUTCOMES, "tasks": sorted(tasks, key=lambda t: order.index(t["outcome"]))}


def embed(data: Any) -> str:
    """The data as JSON that is safe inside a script tag: no character of it can end the tag or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def classify_pair(example: EpisodePair) -> str:
    """The outcome of a pair, one of OUTCOMES. A verdict above one half counts as solved."""
    if example.before is None or example.after is None:
        return "alone"
    before, after = example.before.verdict, example.after.verdict
    if before is None or after is None:
        return "unknown"
    is_solved = before > 0.5, after > 0.5
    return {(False, True): "fixed", (True, False): "broken", (True, True): "both"}.get(is_solved, "neither")


def _make_task(example: EpisodePair, config: Mapping[str, Any]) -> dict[str, Any]:
    answer = example.query.reference.answer
    return {
        "id": example.query.query_id,
        "tier": example.query.tier,
        "instruction": example.query.instruction,
        "answer": answer if isinstance(answer, str) else None,
        "outcome": classify_pair(example),
        "before": make_episode_data(example.before, config) if example.before else None,
        "after": make_episode_data(example.after, config) if example.after else None,
    }


def _compose(rewards: Sequence[StepReward], steps: Sequence[Step], config: Mapping[str, Any]) -> Sequence[float]:
    if len(rewards) != len(steps) or "rewards" not in config:
        return ()
    reward = (config.get("ppo") or {}).get("reward", "step")
    rewards_T = compose(rewards, RewardConfig.model_validate(config["rewards"]), reward, steps)
    return () if rewards_T is None else rewards_T.tolist()


def _list_texts(trajectory: Trajectory) -> list[str]:
    """The text that the model wrote beside the call of each step; the whole turn where no call could be read."""
    turns = [str(m.get("content") or "") for m in trajectory.messages if m["role"] == "assistant"]
    return turns if len(turns) == len(trajectory.steps) else [""] * len(trajectory.steps)


def _make_step(step: Step, text: str) -> dict[str, Any]:
    arguments = step.call.arguments if step.call else {}
    return {
        "call": step.call.name if step.call else None,
        "arguments": [
            [str(k), v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)] for k, v in arguments.items()
        ],
        "text": text[:MAX_CHARACTERS],
        "status": str(step.status),
        "observation": step.observation[:MAX_CHARACTERS],
        "cut": max(0, len(step.observation) - MAX_CHARACTERS),
    }


def _make_scores(reward: StepReward | None) -> dict[str, Any]:
    return {
        "rationale": reward.rationale[:MAX_CHARACTERS] if reward else "",
        "succ_calling": round_finite(reward and reward.succ_calling),
        "contribution": round_finite(reward and reward.contribution),
        "is_solved": round_finite(reward and reward.is_solved),
    }


def _make_credit(advantage: Advantage | None, composed: float | None) -> dict[str, float | None]:
    """What the training made of a step; without a training its composed reward."""
    if advantage is None:
        return {"reward": round_finite(composed), "value": None, "advantage": None}
    names = ("reward", "value", "advantage")
    return {name: round_finite(getattr(advantage, name)) for name in names}


def round_finite(value: Any) -> float | None:
    """A number to four decimals; None for None, infinities and NaN."""
    return round(float(value), 4) if value is not None and math.isfinite(value) else None


def write_viewer(
    target: str | os.PathLike[str],
    queries: str | os.PathLike[str],
    sources: Sequence[EpisodeFiles],
    title: str = "Trajectories",
    page_size: int = PAGE_SIZE,
) -> Path:
    """Write the page for the trajectories of one source, or of several to be compared.

    More than `page_size` trajectories make several pages, which link to each other: viewer.html, viewer-2.html and so
    on. Each is written whole or not at all, the first one last; its path is returned. Rewards are those of the
    advantages file; without one they are composed from the scores with the default settings of `RewardConfig`. Raises
    ContractError for a file of another contract and ValueError for a trajectory whose query is not in `queries` or for
    scores by several annotators.
    """
    if not 1 <= len(sources) <= len(LETTERS):
        raise ValueError(f"expected 1 to {len(LETTERS)} files of trajectories, got {len(sources)}")
    plan, target = PagePlan(queries, sources, page_size), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    names = [target.name, *(f"{target.stem}-{number}{target.suffix}" for number in range(2, plan.count + 1))]
    for page in reversed(range(plan.count)):
        _write_page(target.with_name(names[page]), Archive(plan, page, len(sources)), title, names)
    return target


def _write_page(target: Path, archive: Archive, title: str, names: Sequence[str]) -> None:
    """Write one page. `names` are the files of all pages."""
    css, script = read_asset("theme.css", "steps.css", "viewer.css"), read_asset("steps.js", "viewer.js")
    stream = (
        load_templates()
        .get_template("viewer.html.jinja")
        .stream(
            title=title,
            css=css,
            script=script,
            policy=f"default-src 'none'; style-src {_digest(css)}; script-src {_digest(script)}",
            chunks=archive.chunks(),
            index=archive.index,
            names=names,
            page=archive.page,
        )
    )
    with write_whole(target) as partial:
        stream.dump(str(partial), encoding="utf-8")


class Archive:
    """The trajectories of a page as compressed chunks, and their index; it is complete once all chunks were taken."""

    def __init__(self, plan: PagePlan, page: int, sources: int) -> None:
        self.page = page
        self._plan = plan
        self._queries = plan.queries(page)
        self._policies: list[set[str]] = [set() for _ in range(sources)]
        self._tools: dict[str, int] = {}
        self._query_numbers: dict[str, int] = {}
        self._rows: list[Row] = []

    def chunks(self) -> Iterator[Markup]:
        """Trajectories as compressed lines of JSON, in their order. They can be taken once."""
        lines: list[str] = []
        size = chunk = 0
        for model, episode in self._plan.episodes(self.page):
            record = self._make_record(episode)
            self._rows.append({**self._make_row(episode, record["episode"], model), "chunk": chunk, "line": len(lines)})
            lines.append(_encode_json(record))
            size += len(lines[-1])
            if size >= CHUNK:
                yield compress_text("\n".join(lines))
                lines, size, chunk = [], 0, chunk + 1
        if lines:
            yield compress_text("\n".join(lines))

    def index(self) -> Markup:
        """Models, tools, queries and one row for each trajectory, compressed."""
        names = [_name_policies(sorted(policies)) for policies in self._policies]
        colours = choose_colours(names)
        index = {
            "models": [f"{LETTERS[i]}: {name}" if len(names) > 1 else name for i, name in enumerate(names)],
            "colours": [colours[name] for name in names],
            "tools": list(self._tools),
            "queries": [self._make_query(name) for name in self._query_numbers],
            "rows": self._rows,
        }
        return compress_text(_encode_json(index))

    def _make_query(self, name: str) -> Row:
        query = self._queries[name]
        return {
            "id": name,
            "split": query["split"],
            "tier": query["tier"],
            "text": query["instruction"][:LISTED],
        }

    def _make_record(self, episode: ScoredEpisode) -> Row:
        """The details of a trajectory."""
        trajectory = episode.trajectory
        query = self._queries[trajectory.query_id]
        answer = decode_value(Query, "reference", query["reference"]).answer
        return {
            "instruction": query["instruction"],
            "answer": answer,
            "policy": trajectory.policy,
            "episode": make_episode_data(episode, {"rewards": RewardConfig().model_dump()}),
        }

    def _make_row(self, episode: ScoredEpisode, data: Row, model: int) -> Row:
        """The row of a trajectory in the list, and the values that it can be filtered by."""
        trajectory = episode.trajectory
        self._policies[model].add(trajectory.policy)
        calls = [s for s in trajectory.steps if s.status is not StepStatus.FINISH]
        tools = {s.call.name for s in calls if s.call and s.call.name != FINISH}
        rewards = [s["reward"] for s in data["steps"]]
        heat = [s["reward"] if s["advantage"] is None else s["advantage"] for s in data["steps"]]
        return {
            "id": trajectory.trajectory_id,
            "query": self._query_numbers.setdefault(trajectory.query_id, len(self._query_numbers)),
            "model": model,
            "round": trajectory.round,
            "sample": trajectory.sample,
            "stop": str(trajectory.stop_reason),
            "verdict": data["verdict"],
            "reward": None if None in rewards else round_finite(sum(rewards)),
            "failed": sum(s.status is not StepStatus.OK for s in calls),
            "tools": [self._tools.setdefault(t, len(self._tools)) for t in sorted(tools)],
            "heat": heat,
        }


def compress_text(text: str) -> Markup:
    """Text compressed (zlib) as base64, which may stand anywhere in a page."""
    data = zlib.compress(text.encode("utf-8", errors="backslashreplace"), 6)
    return Markup(base64.b64encode(data).decode("ascii"))


def _encode_json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _digest(text: str) -> str:
    """The source expression that lets a browser run or apply exactly this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _name_policies(policies: Sequence[str]) -> str:
    return policies[0] if len(policies) == 1 else f"{len(policies)} policies"
