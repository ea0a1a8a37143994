"""Trackers of experiments: TensorBoard, Weights & Biases, MLflow and Trackio, through accelerate's integrations.

All stages of a run write to one run of a tracker, in whatever pods they are, and so does a stage that is tried again.
Figures of an optimizer step stand under the stage, as in ppo/policy_loss; those of a round under rounds/ with the round
as step; those of the held-out tasks under evaluation/. If a tracker fails, the terminal names it and the run goes on.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from steptool.artifacts.errors import describe_error
from steptool.artifacts.metrics import is_first_process, say
from steptool.config import Config, ConfigError
from steptool.config.run import TrackingConfig
from steptool.records import Cost, Evaluation, Metric, StepReward, Trajectory

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
_RUN_TAG = "steptool.run"
_EXECUTION = ("FLYTE_INTERNAL_EXECUTION_PROJECT", "FLYTE_INTERNAL_EXECUTION_DOMAIN", "FLYTE_INTERNAL_EXECUTION_ID")


@dataclass(frozen=True)
class Entry:
    """Figures by name at one step, and texts in Markdown by name."""

    figures: Mapping[str, float]
    step: int
    texts: Mapping[str, str] | None = None


def check_trackers(config: TrackingConfig) -> None:
    """Raise ConfigError, with the package to install, if a configured tracker is not installed."""
    for name in config.trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            package = "mlflow-skinny" if name == "mlflow" else _PACKAGES[name]
            raise ConfigError(
                f"tracking.trackers: {name} needs a package that is not installed; pip install {package}, "
                'or pip install "steptool[trackers]" for all of them'
            )


def name_run(config: TrackingConfig) -> str:
    """The name of the run at the trackers: as configured, else that of Flyte's execution, else one of this process.

    Processes that this one starts take part in its run.
    """
    if config.run:
        return config.run
    execution = [os.environ[name] for name in _EXECUTION if os.environ.get(name)]
    if execution:
        return "-".join(execution)
    return os.environ.setdefault("STEPTOOL_RUN", f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")


def track_configuration(config: Config) -> None:
    """Hand the fields of the configuration to the trackers, as hyperparameters."""
    fields = dict(_flatten(config.model_dump(mode="json")))
    _call_each_tracker(config.tracking, lambda tracker: _log_configuration(tracker, fields))


def track_updates(metrics: Sequence[Metric], config: Config) -> None:
    """Track the figures of optimizer steps: each by its number over all rounds."""
    track(list(_list_update_entries(metrics, config)), config.tracking)


def track_round(
    episodes: Sequence[Trajectory],
    rewards: Sequence[StepReward],
    metrics: Sequence[Metric],
    costs: Sequence[Cost],
    config: Config,
) -> None:
    """Track a round: its pass rate, the means of its step scores and of each figure of its updates, and its costs."""
    if not config.tracking.trackers:
        return
    round_index = max((m.round for m in metrics), default=0)
    figures = {
        f"rounds/{name}": value for name, value in _compute_round_figures(episodes, rewards, metrics, costs).items()
    }
    track([*_list_update_entries(metrics, config), Entry(figures, round_index)], config.tracking)


def track_evaluation(name: str, rows: Sequence[Evaluation], config: Config) -> None:
    """Track the pass rates of a model on the held-out tasks, by way of decoding and by tier."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.passed is not None:
            shares[f"evaluation/{name}/{row.decoding}/all"].append(row.passed)
            if row.tier:
                shares[f"evaluation/{name}/{row.decoding}/{row.tier}"].append(row.passed)
    track([Entry({key: fmean(values) for key, values in shares.items()}, 0)], config.tracking)


def track_results(table: str, places: Mapping[str, str], config: Config) -> None:
    """Track the table of results, as text, and where report, viewer and model lie."""
    links = "\n".join(f"- {name}: {place}" for name, place in places.items())
    track([Entry({}, 0, {"results": f"```\n{table}\n```", "links": links})], config.tracking)


def track(entries: Sequence[Entry], config: TrackingConfig) -> None:
    """Hand the entries to every configured tracker."""

    def log(tracker: Any) -> None:
        for entry in entries:
            if entry.figures:
                _log_figures(tracker, entry)
            for name, text in (entry.texts or {}).items():
                _log_text(tracker, name, text)

    _call_each_tracker(config, log)


def _call_each_tracker(config: TrackingConfig, use: Callable[[Any], None]) -> None:
    if not config.trackers or not is_first_process():
        return
    from accelerate import PartialState

    PartialState()  # accelerate's trackers need it
    for name in config.trackers:
        try:
            tracker = _OPENERS[name](config, name_run(config))
            try:
                use(tracker)
            finally:
                tracker.finish()
        except Exception as error:  # a server that is down must not cost the training
            say("tracking", f"{name} did not take these figures: {describe_error(error)}")


def _open_tensorboard(config: TrackingConfig, run: str) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return _start(TensorBoardTracker(run, config.folder))


def _open_wandb(config: TrackingConfig, run: str) -> Any:
    from accelerate.tracking import WandBTracker

    Path(config.folder).mkdir(parents=True, exist_ok=True)
    mode = "online" if config.online else "offline"
    tracker = _start(WandBTracker(config.project, id=run, name=run, mode=mode, resume="allow", dir=config.folder))
    for series, axis in (("rounds/*", "round"), ("ppo/*", "update"), ("warm_start/*", "update")):
        tracker.run.define_metric(series, step_metric=axis)
    return tracker


def _open_mlflow(config: TrackingConfig, run: str) -> Any:
    import mlflow
    from accelerate.tracking import MLflowTracker

    if config.mlflow_url:
        mlflow.set_tracking_uri(config.mlflow_url)
    else:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((Path(config.folder).resolve() / "mlruns").as_uri())
    experiment = mlflow.get_experiment_by_name(config.project)
    former = (
        mlflow.MlflowClient().search_runs([experiment.experiment_id], f"tags.`{_RUN_TAG}` = '{run}'", max_results=1)
        if experiment
        else []
    )
    former_id = former[0].info.run_id if former else None
    return _start(MLflowTracker(config.project, None, former_id, {_RUN_TAG: run}, run_name=run))


def _open_trackio(config: TrackingConfig, run: str) -> Any:
    os.environ.setdefault("TRACKIO_DIR", str(Path(config.folder).resolve() / "trackio"))
    from accelerate.tracking import TrackioTracker

    return _start(TrackioTracker(config.project, name=run, resume="allow", embed=False))


_OPENERS: dict[str, Callable[[TrackingConfig, str], Any]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}


def _start(tracker: Any) -> Any:
    tracker.start()
    return tracker


def _log_configuration(tracker: Any, fields: dict[str, str | float | bool]) -> None:
    """Log hyperparameters. For TensorBoard accelerate would open a second run, and a folder on this machine."""
    if tracker.name != "tensorboard":
        tracker.store_init_configuration(fields)
        return
    from torch.utils.tensorboard.summary import hparams

    for part in hparams(fields, {}):  # type: ignore[no-untyped-call]
        tracker.writer.file_writer.add_summary(part)


def _log_figures(tracker: Any, entry: Entry) -> None:
    if tracker.name in ("wandb", "trackio"):  # their steps may only grow: the axis is a figure of its own
        axis = "round" if next(iter(entry.figures)).startswith("rounds/") else "update"
        tracker.log({**entry.figures, axis: entry.step})
    else:
        tracker.log(dict(entry.figures), step=entry.step)


def _log_text(tracker: Any, name: str, text: str) -> None:
    if tracker.name == "tensorboard":
        tracker.tracker.add_text(name, text)
    elif tracker.name == "mlflow":
        import mlflow

        mlflow.set_tag(f"steptool.{name}", text)
    elif tracker.name == "wandb":
        tracker.run.summary[name] = text
    else:
        import trackio

        tracker.log({name: trackio.Markdown(text)})


def _list_update_entries(metrics: Iterable[Metric], config: Config) -> Iterator[Entry]:
    """The figures of optimizer steps. The steps of a round are numbered from round * the most steps of any round on.

    A round that leaves trajectories out has fewer steps; the numbers of the next one do not overlap with its own.
    """
    by_update: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    for m in metrics:
        if m.update >= 0:
            by_update[m.round, m.update][f"{m.stage}/{m.name}"] = m.value
    most = config.ppo.epochs * math.ceil(config.rollout.episodes / config.ppo.batch_size)
    per_round = max(most, 1 + max((update for _, update in by_update), default=0))
    for (round_index, update), figures in sorted(by_update.items()):
        yield Entry(figures, max(round_index, 0) * per_round + update)


def _compute_round_figures(
    episodes: Sequence[Trajectory], rewards: Sequence[StepReward], metrics: Sequence[Metric], costs: Sequence[Cost]
) -> Mapping[str, float]:
    series: dict[str, list[float]] = defaultdict(list)
    for m in metrics:
        series[f"{m.stage}/{m.name}"].append(m.value)
    for episode in episodes:
        if episode.solved is not None:
            series["pass_rate"].append(float(episode.solved))
        series["steps"].append(float(len(episode.steps)))
    for reward in rewards:
        for component in ("succ_calling", "contribution", "is_solved"):
            score = getattr(reward, component)
            if score is not None:
                series[f"scores/{component}"].append(float(score))
    series["seconds"] = [sum(cost.seconds for cost in costs)]
    series["tokens"] = [float(sum(cost.tokens for cost in costs))]
    return {name: fmean(values) for name, values in series.items() if values}


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float | bool]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flatten(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item if isinstance(item, (str, int, float, bool)) else str(item)
