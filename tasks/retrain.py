"""Retraining: find new data, decide whether the challenger replaces the champion, and report the run."""

import uuid
from datetime import datetime
from typing import NamedTuple

from flytekit import Deck, current_context
from flytekit.types.error import FlyteError
from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import say
from steptool.config import Config
from steptool.retraining.plan import Decision, Result, RetrainingPlan, RunOutcome, make_run_id, plan_run
from tasks.runtime.artifacts import Model, Parquet, download, make_folder
from tasks.runtime.stage import code_version, stage


class RetrainOutputs(NamedTuple):
    """How the run ended, the version that it published if any, and its page."""

    result: Result
    version: str
    page: FlyteFile


_LOCAL_TOKENS: dict[tuple[str, datetime], str] = {}
"""The token of the latest local run in this process, by registry and kickoff."""


def _make_token(registry: str, kickoff: datetime) -> str:
    """Make a token that tells apart the runs of one kickoff; on a cluster it is the name of the execution."""
    execution = current_context().execution_id
    if execution and execution.name != "local":
        return str(execution.name)
    _LOCAL_TOKENS[registry, kickoff] = uuid.uuid4().hex[:8]
    return _LOCAL_TOKENS[registry, kickoff]


@stage("plan_retraining")
def plan_retraining(config: Config, registry: str, kickoff: datetime, force: bool) -> RetrainingPlan:
    """Find out which data is new and which model is in service."""
    from steptool.registry import Registry

    plan = plan_run(config, Registry(registry), make_run_id(kickoff, _make_token(registry, kickoff)), kickoff, force)
    news = f"{len(plan.new)} of {plan.files} sources new, in service: {plan.champion or plan.base}"
    say("retrain", news if plan.due else f"nothing new in {plan.files} sources: nothing is trained")
    return plan


@stage("decide")
def decide(config: Config, registry: str, plan: RetrainingPlan, rows: Parquet, queries: Parquet) -> Decision:
    """Judge the challenger by the rule."""
    from steptool.records import Evaluation
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records
    from steptool.registry import Registry
    from steptool.retraining.promotion import decide as decide_by_rule
    from steptool.retraining.promotion import find_contaminated, list_categories, read_trained_on

    held_out = read_queries(download(queries), config.evaluation.split)
    trained_on = read_trained_on(Registry(registry).model_place(plan.champion)) if plan.champion else frozenset()
    decision = decide_by_rule(
        read_records(download(rows), Evaluation),
        {query.query_id: list_categories(query) for query in held_out},
        config.promotion,
        contaminated=find_contaminated(held_out, trained_on),
        seed=config.seed,
    )
    say("decide", "the rule lets it pass" if decision.promote else "; ".join(decision.reasons))
    return decision


@stage("promote")
def promote(
    config: Config,
    registry: str,
    plan: RetrainingPlan,
    decision: Decision,
    approved: bool,
    model: Model,
    rows: Parquet,
    queries: Parquet,
) -> RunOutcome:
    """Publish the challenger and put it in service, if nothing speaks against it."""
    from steptool.records import Evaluation
    from steptool.records.episodes import read_queries
    from steptool.records.tables import read_records
    from steptool.registry import Registry
    from steptool.retraining.promotion import copy_model, describe_version, read_trained_on, settle, write_trained_on

    store, folder = Registry(registry), make_folder("challenger")
    copy_model(download(model), folder)
    trained_on = read_trained_on(store.model_place(plan.champion)) if plan.champion else frozenset()
    write_trained_on(folder, read_queries(download(queries)), trained_on)
    metadata = describe_version(config, plan, decision, read_records(download(rows), Evaluation), code_version())
    return settle(store, plan, decision, approved, folder, metadata)


@stage("report_retraining")
def report_retraining(
    registry: str, output: str, plan: RetrainingPlan, outcome: RunOutcome, training: str
) -> RetrainOutputs:
    """Write the page of the run, and the run into the registry."""
    from steptool.registry import Registry
    from steptool.report.evaluation_page import RETRAINING_PAGE, build_retraining_page
    from steptool.retraining.promotion import describe_run
    from steptool.storage.transfer import deliver

    page = make_folder("retraining_page") / RETRAINING_PAGE
    page.write_text(build_retraining_page(plan, outcome, training), encoding="utf-8")
    Deck("retraining", page.read_text(encoding="utf-8"))
    folder = f"{output.rstrip('/')}/{plan.run_id}"
    Registry(registry).record_run(plan.run_id, describe_run(plan, outcome, f"{folder}/{RETRAINING_PAGE}"))
    place = deliver({RETRAINING_PAGE: page}, folder)[RETRAINING_PAGE]
    say("retrain", f"{outcome.result}: {'; '.join(outcome.reasons)}")
    say("retrain", f"page: {place}")
    return RetrainOutputs(outcome.result, outcome.version, FlyteFile(place))


@stage("record_failure")
def record_failure(
    config: Config, registry: str, output: str, kickoff: datetime, force: bool, err: FlyteError | None = None
) -> None:
    """Note in the registry that the run failed and why. Its sources count as new in the next run."""
    from steptool.registry import Registry
    from steptool.retraining.promotion import describe_failure

    failure = describe_failure(kickoff, err.message if err else "")
    say("retrain", f"failed: {failure['reasons'][0]}")
    token = _LOCAL_TOKENS.get((registry, kickoff)) or _make_token(registry, kickoff)
    Registry(registry).record_run(make_run_id(kickoff, token), failure)
