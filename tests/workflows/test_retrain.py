"""Nights of retraining on the embedded world, with real models and real files.

The model in service at first has learned from careless logs and solves about one task in ten. A night's logs are those
of a careful expert, who teaches it nearly all of them, or of a careless one, who spoils it.
"""

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from small_runs import retraining_settings, train_on_logs
from steptool.config import Config
from steptool.records import Query
from steptool.registry import Registry
from workflows.retrain import retrain

ROOT = Path(__file__).parents[2]
PYFLYTE = str(Path(sys.executable).with_name("pyflyte"))
write_night = runpy.run_path(str(ROOT / "examples" / "nightly" / "logs.py"))["write_night"]
TASKS = 130
CAREFUL, FAIR, CARELESS = 0.0, 0.6, 1.0


def settings(folder: Path, base: Path | str, **promotion: object) -> Config:
    """A night of seconds."""
    promotion = {"max_invalid_rise": 0.3, **promotion}
    return Config.model_validate({**retraining_settings(folder, base), "promotion": promotion})


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned from careless logs: what is in service at first."""
    folder = tmp_path_factory.mktemp("careless")
    write_night(folder, "before", TASKS, CARELESS)
    return train_on_logs(settings(folder, "embedded"), folder, steps=30)


class Nights:
    """A registry, and the folders to which the nights write files."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.registry = Registry(folder / "registry")

    def write_night(self, night: int, careless: float) -> None:
        write_night(self.folder, f"night{night:02}", TASKS, careless)

    def inputs(self, night: int, **changes: Any) -> dict[str, Any]:
        inputs = {"config": settings(self.folder, self.base), "kickoff": datetime(2026, 11, night, 2, tzinfo=UTC)}
        return inputs | {"registry": str(self.folder / "registry"), "output": str(self.folder / "out")} | changes

    def run(self, night: int, **changes: Any) -> str:
        """A night in this process: how it ended."""
        outcome: Any = retrain(**self.inputs(night, **changes))
        record = self.registry.runs()[-1]
        assert (record["result"], record["page"], record["version"]) == (
            outcome.result,
            str(outcome.page),
            outcome.version,
        )
        assert Path(record["page"]).parent.name == record["run_id"]
        return str(outcome.result)

    def start(self, night: int, answer: str = "", **changes: Any) -> "subprocess.Popen[str]":
        """A night in a process of its own, by the command that a person types."""
        inputs = self.inputs(night, **changes)
        config = self.folder / f"config{night}{inputs['config'].seed}.yaml"
        config.write_text(inputs["config"].model_dump_json())
        options = {"config": config, "registry": inputs["registry"], "output": inputs["output"]}
        options["kickoff"] = f"{inputs['kickoff']:%Y-%m-%dT%H:%M:%S}"
        process = subprocess.Popen(
            [PYFLYTE, "run", "workflows/retrain.py", "retrain"]
            + [f"--{name}={value}" for name, value in options.items()],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert process.stdin
        process.stdin.write(answer)
        process.stdin.close()
        return process

    def kill(self, night: int, stage: str) -> str:
        """A night whose process, with all that it started, is killed once a stage has spoken."""
        process = self.start(night)
        assert process.stdout
        lines: list[str] = []
        while not lines or not lines[-1].startswith(stage):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(20) == -signal.SIGKILL
        return "killed"

    def ask(self, night: int, answer: str) -> str:
        """A night on which a person is asked."""
        asking = settings(self.folder, self.base, approval=True)
        self.finish(self.start(night, f"{answer}\n", config=asking))
        return str(self.registry.runs()[-1]["result"])

    def run_twice(self, night: int) -> str:
        """Two runs at once, which train differently: how they ended."""
        config = settings(self.folder, self.base)
        running = [self.start(night, config=config.model_copy(update={"seed": seed})) for seed in (0, 1)]
        outputs = [self.finish(process) for process in running]
        assert sum("refused: stale comparison: number" in text for text in outputs) == 1
        return ", ".join(sorted(run["result"] for run in self.registry.runs()[-2:]))

    def stumble(self, night: int) -> str:
        """A night with a broken file, which somebody takes away in the morning."""
        broken = self.folder / "tasks" / "broken.jsonl"
        broken.write_text("{not json}\n")
        with pytest.raises(Exception, match="not JSON"):
            self.run(night)
        broken.unlink()
        return str(self.registry.runs()[-1]["result"])

    def roll_back_and_run(self, night: int) -> str:
        self.registry.roll_back(to=self.registry.history()[0].version_id, reason="complaints")
        return self.run(night)

    def finish(self, process: "subprocess.Popen[str]") -> str:
        """What a process said until its end."""
        assert process.stdout
        output = process.stdout.read()
        assert process.wait() == 0, output
        return output

    def whole(self, champions: int) -> None:
        """The registry is whole, and has seen so many champions."""
        assert self.registry.verify() == []
        assert len(self.registry.history()) == champions


@pytest.fixture
def nights(careless: Path, tmp_path: Path) -> Nights:
    return Nights(tmp_path, careless)


def rates(record: dict[str, Any]) -> SimpleNamespace:
    """The gain of a run's decision."""
    return SimpleNamespace(**next(c for c in record["decision"]["criteria"] if c["measured"]))


def test_four_nights(nights: Nights) -> None:
    """One is killed, one promotes, one has nothing to do, one brings worse logs and is refused."""
    nights.write_night(1, CAREFUL)
    nights.kill(1, "prepare")
    nights.whole(champions=0)
    assert nights.registry.runs() == []

    assert nights.run(2) == "promoted"  # what the killed night had seen is still new
    nights.whole(champions=1)
    champion = nights.registry.champion()
    assert champion
    record = nights.registry.runs()[-1]
    assert [Path(source["place"]).name for source in record["new"]] == ["night01.jsonl"] * 2
    assert rates(record).low > 0.1 and record["version"] == champion.version_id
    version = nights.registry.version(champion.version_id)
    assert [e["stage"] for e in version.lineage] == ["base", "warm_start", "step_ppo"]
    assert "model/serving.json" in version.files
    assert version.metadata["results"]["challenger"]["pass_rate"] > 0.3
    assert version.metadata["results"]["champion"]["pass_rate"] < 0.3

    assert nights.run(3) == "skipped"
    assert not (Path(nights.registry.runs()[-1]["page"]).parent / "training").exists()

    nights.write_night(4, CARELESS)
    assert nights.run(4) == "refused"
    nights.whole(champions=1)
    record = nights.registry.runs()[-1]
    assert rates(record).high < -0.2 and record["base"] == nights.registry.model_place(champion.version_id)
    assert record["reasons"][0].startswith("gain in pass rate: −")
    assert Path(record["page"]).with_name("training").joinpath("report.html").is_file()
    assert nights.registry.champion() == champion
    _tasks_keep_their_split(nights)


def _tasks_keep_their_split(nights: Nights) -> None:
    """No task was trained on that was held out on any night, and each version knows what it was trained on."""
    from steptool.records.episodes import read_queries
    from steptool.retraining.promotion import find_contaminated, read_trained_on

    splits: dict[str, str] = {}
    held_out: list[Query] = []
    for file in sorted((nights.folder / "out").glob("*/training/queries.parquet")):
        queries = list(read_queries(file))
        held_out += [query for query in queries if query.split == "heldout"]
        for query in queries:
            assert splits.setdefault(query.instruction, query.split) == query.split
    for version in nights.registry.versions():
        trained_on = read_trained_on(nights.registry.model_place(version.version_id))
        assert len(trained_on) >= 60
        assert find_contaminated(held_out, trained_on) == set()


def test_a_night_that_breaks_is_recorded_with_its_cause(tmp_path: Path) -> None:
    nights = Nights(tmp_path, tmp_path)
    nights.write_night(1, CAREFUL)
    assert nights.stumble(1) == "failed"
    (record,) = nights.registry.runs()
    assert record["new"] == []
    assert f"{tmp_path / 'tasks' / 'broken.jsonl'}, line 1: not JSON" in record["reasons"][0]
    assert record["run_id"].startswith("20261101T020000Z-")
    assert not (tmp_path / "out").exists(), "nothing of a night that broke is published"


def test_the_command_starts_quickly_and_quietly() -> None:
    program = "import sys, workflows.retrain; print({'torch', 'transformers'} & set(sys.modules))"
    for command in ([sys.executable, "-c", program], [PYFLYTE, "run", "workflows/retrain.py", "retrain", "--help"]):
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert "Warning" not in process.stderr
        assert "set()" in process.stdout or "--force" in process.stdout


def test_a_night_without_sources_fails_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"data\.paths: '.*tasks' does not exist"):
        Nights(tmp_path, tmp_path).run(1)
    assert "does not exist" in Registry(tmp_path / "registry").runs()[0]["reasons"][0]


@pytest.mark.cluster
def test_thirty_nights(nights: Nights) -> None:
    """Days without data, worse logs, crashes, a broken file, roll-backs, two runs at once, a person who is asked."""
    happens: dict[int, tuple[float | None, Callable[[int], str], str]] = {
        1: (FAIR, nights.run, "promoted"),
        4: (CARELESS, nights.run, "refused"),
        6: (CAREFUL, partial(nights.kill, stage="rollout"), "killed"),
        7: (None, nights.run, "promoted"),  # of what came the day before
        9: (CARELESS, nights.run, "refused"),
        11: (CARELESS, nights.run, "refused"),
        13: (None, nights.stumble, "failed"),
        15: (None, nights.roll_back_and_run, "skipped"),
        16: (CAREFUL, nights.run_twice, "promoted, refused"),
        18: (CARELESS, nights.run, "refused"),
        20: (None, nights.roll_back_and_run, "skipped"),
        21: (CAREFUL, partial(nights.ask, answer="false"), "refused"),
        22: (CAREFUL, partial(nights.ask, answer="true"), "promoted"),
        25: (CARELESS, nights.run, "refused"),
        28: (CAREFUL, partial(nights.kill, stage="decide"), "killed"),
        29: (None, nights.run, "refused"),
    }
    switched = [1, 7, 15, 16, 20, 22]
    for night in range(1, 31):
        careless, act, expected = happens.get(night, (None, nights.run, "skipped"))
        if careless is not None:
            nights.write_night(night, careless)
        assert act(night) == expected, night
        nights.whole(champions=sum(n <= night for n in switched))

    history, runs = nights.registry.history(), nights.registry.runs()
    promoted = [run for run in runs if run["result"] == "promoted"]
    assert [run["version"] for run in promoted] == [history[n].version_id for n in (0, 1, 3, 5)]
    assert history[2].version_id == history[4].version_id == history[0].version_id
    assert all(rates(run).low > 0 for run in promoted)  # as the rule of promotion asks
    assert [run["reasons"] for run in runs if run["run_id"].startswith("20261121")] == [["approval: a person said no"]]
    _tasks_keep_their_split(nights)
