"""Retraining: what is new, whether the challenger may take over, and what is told of the run."""

import os
import shutil
import uuid
from datetime import datetime
from typing import NamedTuple

from flytekit import Deck
from flytekit.types.error import FlyteError
from flytekit.types.file import FlyteFile

from steptool.artifacts.progress import say
from steptool.config import Config
from steptool.retraining.outcome import Decision, Result, RunOutcome
from steptool.retraining.plan import RetrainingPlan, plan, run_id
from tasks.runtime.artifacts import Model, Parquet, local, scratch
from tasks.runtime.stage import stage
from tasks.runtime.version import code_version


class Outcome(NamedTuple):
    """How the run ended, the version that it published if any, and its page."""

    result: Result
    version: str
    page: FlyteFile


@stage("look")
def look(config: Config, registry: str, kickoff: datetime, force: bool) -> RetrainingPlan:
    """See what is new and who is in service."""
    from steptool.registry import Registry

    night = plan(config, Registry(registry), run_id(kickoff, uuid.uuid4().hex[:8]), kickoff, force)
    said = f"{len(night.new)} of {night.files} sources new, in service: {night.champion or night.base}"
    say("look", said if night.due else f"nothing new in {night.files} sources: nothing is trained")
    return night


@stage("decide")
def decide(config: Config, registry: str, night: RetrainingPlan, rows: Parquet, queries: Parquet) -> Decision:
    """Judge the challenger by the rule."""
    from steptool.artifacts.contracts import EVALUATIONS, read_rows
    from steptool.artifacts.rows import read_queries
    from steptool.registry import Registry
    from steptool.retraining import contamination as exposure
    from steptool.retraining import gate
    from steptool.retraining.categories import categories

    asked = read_queries(local(queries), config.evaluation.split)
    seen = exposure.trained_on(Registry(registry).model_place(night.champion)) if night.champion else frozenset()
    decision = gate.decide(
        read_rows(local(rows), EVALUATIONS),
        {query.query_id: categories(query) for query in asked},
        config.promotion,
        known=exposure.known(asked, seen),
        seed=config.seed,
    )
    say("decide", "the rule lets it pass" if decision.promote else "; ".join(decision.reasons))
    return decision


@stage("promote")
def promote(
    config: Config,
    registry: str,
    night: RetrainingPlan,
    decision: Decision,
    approved: bool,
    model: Model,
    rows: Parquet,
    queries: Parquet,
) -> RunOutcome:
    """Publish the challenger and put it in service, if nothing speaks against it."""
    from steptool.artifacts.contracts import EVALUATIONS, read_rows
    from steptool.artifacts.rows import read_queries
    from steptool.registry import Registry
    from steptool.retraining import contamination as exposure
    from steptool.retraining.promotion import described, settle

    opened, folder = Registry(registry), scratch("challenger")
    shutil.copytree(local(model), folder, dirs_exist_ok=True, copy_function=os.link)
    seen = exposure.trained_on(opened.model_place(night.champion)) if night.champion else frozenset()
    exposure.note(folder, read_queries(local(queries)), seen)
    told = described(config, night, decision, read_rows(local(rows), EVALUATIONS), code_version())
    return settle(opened, night, decision, approved, folder, told)


@stage("tell")
def tell(registry: str, output: str, night: RetrainingPlan, ending: RunOutcome, training: str) -> Outcome:
    """Write the page of the run, and the run into the registry."""
    from steptool.registry import Registry
    from steptool.report.retraining_page import PAGE, retraining_page
    from steptool.retraining.record import document
    from steptool.storage.delivery import deliver

    page = scratch("told") / PAGE
    page.write_text(retraining_page(night, ending, training), encoding="utf-8")
    Deck("retraining", page.read_text(encoding="utf-8"))
    folder = f"{output.rstrip('/')}/{night.run_id}"
    Registry(registry).record_run(night.run_id, document(night, ending, f"{folder}/{PAGE}"))
    place = deliver(page, folder, PAGE)
    say("retrain", f"{ending.result}: {'; '.join(ending.reasons)}")
    print(f"page: {place}", flush=True)
    return Outcome(ending.result, ending.version, FlyteFile(place))


@stage("record_failure")
def record_failure(
    config: Config, registry: str, output: str, kickoff: datetime, force: bool, err: FlyteError | None = None
) -> None:
    """Note in the registry that the run failed and why. What it has seen stays new."""
    from steptool.registry import Registry
    from steptool.retraining.record import failure

    told = failure(kickoff, err.message if err else "")
    say("retrain", f"failed: {told['reasons'][0]}")
    Registry(registry).record_run(run_id(kickoff, uuid.uuid4().hex[:8]), told)
