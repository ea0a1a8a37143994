"""The viewer of any set of trajectories: one HTML file that needs no network and no server.

The file holds an index, one small row for each trajectory, and the trajectories themselves in compressed chunks. The
browser decodes the index when it opens the file, and a chunk when one of its trajectories is looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeVar

from markupsafe import Markup

from steptool.config import RewardConfig
from steptool.records import FINISH, Advantage, Evaluation, Query, StepReward, StepStatus, Trajectory
from steptool.records.columns import Row, from_row, schema_of
from steptool.records.tables import iterate_records, iterate_rows, write_whole
from steptool.report.assets import asset, templates
from steptool.report.episode_data import episode_data, finite
from steptool.report.run_inputs import ScoredEpisode

CHUNK = 300_000
"""Characters of JSON that are compressed together: the browser decodes one chunk to show one trajectory."""
S = TypeVar("S", StepReward, Advantage)

LISTED = 300
"""Characters of an instruction that the list shows and the quick search reads."""
LETTERS = ascii_uppercase
"""Names of the models in the page's address, in the order of the sources."""


@dataclass(frozen=True)
class EpisodeFiles:
    """A file of trajectories, and the files of their scores where there are any."""

    trajectories: Path
    rewards: Path | None = None
    """Rewards by one annotator."""
    advantages: Path | None = None
    evaluations: Path | None = None
    """Verdicts that count in place of the environment's own and the annotator's."""


def write_viewer(
    target: str | os.PathLike[str],
    queries: str | os.PathLike[str],
    sources: Sequence[EpisodeFiles],
    title: str = "Trajectories",
) -> Path:
    """Write the page for the trajectories of one source, or of several to be compared; whole or not at all.

    Rewards are those of the advantages file; without one they are composed from the scores with the default settings
    of `RewardConfig`. Raises ContractError for a file of another contract and ValueError for a trajectory whose query
    is not in `queries` or for scores by several annotators.
    """
    archive = Archive(queries, sources)
    css, script = asset("theme.css", "steps.css", "viewer.css"), asset("steps.js", "viewer.js")
    page = templates().get_template("viewer.html.jinja")
    stream = page.stream(
        title=title,
        css=css,
        script=script,
        policy=f"default-src 'none'; style-src {_digest(css)}; script-src {_digest(script)}",
        chunks=archive.chunks(),
        index=archive.index,
    )
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(target) as partial:
        stream.dump(str(partial), encoding="utf-8")
    return target


class Archive:
    """Trajectories as compressed chunks, and their index. The index is complete once all chunks were taken."""

    def __init__(self, queries: str | os.PathLike[str], sources: Sequence[EpisodeFiles]) -> None:
        if not 1 <= len(sources) <= len(LETTERS):
            raise ValueError(f"expected 1 to {len(LETTERS)} files of trajectories, got {len(sources)}")
        self._queries_file = queries
        self._queries = _queries(queries)
        self._sources = sources
        self._policies: list[set[str]] = [set() for _ in sources]
        self._tools: dict[str, int] = {}
        self._query_numbers: dict[str, int] = {}
        self._rows: list[Row] = []

    def chunks(self) -> Iterator[Markup]:
        """Trajectories as compressed lines of JSON, in their order. They can be taken once."""
        lines: list[str] = []
        size = chunk = 0
        for model, source in enumerate(self._sources):
            for episode in _episodes(source):
                record = self._record(episode)
                self._rows.append({**self._row(episode, record["episode"], model), "chunk": chunk, "line": len(lines)})
                lines.append(_json(record))
                size += len(lines[-1])
                if size >= CHUNK:
                    yield pack("\n".join(lines))
                    lines, size, chunk = [], 0, chunk + 1
        if lines:
            yield pack("\n".join(lines))

    def index(self) -> Markup:
        """Models, tools, queries and one row for each trajectory, compressed."""
        index = {
            "models": [_label(i, sorted(p), len(self._sources)) for i, p in enumerate(self._policies)],
            "tools": list(self._tools),
            "queries": [self._query(name) for name in self._query_numbers],
            "rows": self._rows,
        }
        return pack(_json(index))

    def _query(self, name: str) -> Row:
        query = self._queries[name]
        return {
            "id": name,
            "split": query["split"],
            "tier": query["tier"],
            "text": query["instruction"][:LISTED],
        }

    def _record(self, episode: ScoredEpisode) -> Row:
        """The details of a trajectory."""
        trajectory = episode.trajectory
        query = self._queries.get(trajectory.query_id)
        if query is None:
            raise ValueError(
                f"trajectory '{trajectory.trajectory_id}' is of the query '{trajectory.query_id}', which is not in "
                f"{self._queries_file}: give the file of queries that the trajectories were made for"
            )
        answer = json.loads(query["reference"]).get("answer")
        return {
            "instruction": query["instruction"],
            "answer": answer if isinstance(answer, str) else None,
            "policy": trajectory.policy,
            "episode": episode_data(episode, {"rewards": RewardConfig().model_dump()}),
        }

    def _row(self, episode: ScoredEpisode, data: Row, model: int) -> Row:
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
            "reward": None if None in rewards else finite(sum(rewards)),
            "failed": sum(s.status is not StepStatus.OK for s in calls),
            "tools": [self._tools.setdefault(t, len(self._tools)) for t in sorted(tools)],
            "heat": heat,
        }


def pack(text: str) -> Markup:
    """Text compressed (zlib) as base64, which may stand anywhere in a page."""
    data = zlib.compress(text.encode("utf-8", errors="backslashreplace"), 6)
    return Markup(base64.b64encode(data).decode("ascii"))


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _digest(text: str) -> str:
    """The source expression that lets a browser run or apply exactly this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _queries(path: str | os.PathLike[str]) -> Mapping[str, Row]:
    columns = ["query_id", "split", "tier", "instruction", "reference"]
    return {row["query_id"]: row for row in iterate_rows(path, Query, columns=columns)}


def _label(number: int, policies: Sequence[str], models: int) -> str:
    name = policies[0] if len(policies) == 1 else f"{len(policies)} policies"
    return f"{LETTERS[number]}: {name}" if models > 1 else name


def _episodes(source: EpisodeFiles) -> Iterator[ScoredEpisode]:
    rewards, advantages = _by_trajectory(source.rewards, StepReward), _by_trajectory(source.advantages, Advantage)
    _check_annotator(source.rewards, rewards)
    verdicts = _read_verdicts(source.evaluations)
    columns = [n for n in schema_of(Trajectory).names if n not in {"input_ids", "logprobs"}]
    for row in iterate_rows(source.trajectories, Trajectory, batch_size=256, columns=columns):
        trajectory = from_row({**row, "input_ids": (), "logprobs": ()}, Trajectory)  # a page shows no tokens
        name = trajectory.trajectory_id
        annotated = next((r.is_solved for r in rewards.get(name, ()) if r.is_solved is not None), None)
        verdict = verdicts.get(name, annotated if trajectory.solved is None else None)
        yield ScoredEpisode(trajectory, rewards.get(name, ()), advantages.get(name, ()), verdict)


def _by_trajectory(path: Path | None, cls: type[S]) -> dict[str, list[S]]:
    records: dict[str, list[S]] = defaultdict(list)
    for record in iterate_records(path, cls) if path else ():
        records[record.trajectory_id].append(record)
    return dict(records)


def _read_verdicts(path: Path | None) -> dict[str, float]:
    columns = ["trajectory_id", "passed"]
    rows = iterate_rows(path, Evaluation, columns=columns) if path else ()
    return {row["trajectory_id"]: row["passed"] for row in rows}


def _check_annotator(path: Path | None, scores: Mapping[str, Sequence[StepReward]]) -> None:
    annotators = {(r.annotator, r.annotator_version) for rows in scores.values() for r in rows}
    if len(annotators) > 1:
        raise ValueError(
            f"{path}: expected the scores of one annotator, got those of {sorted(annotators)}; give a file with one"
        )
