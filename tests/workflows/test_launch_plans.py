"""What is registered to run by itself, as Flyte's Admin gets it: declared in a process of its own by a real profile."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from steptool.config.base import ConfigError
from tasks.runtime.profile import load_profile

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
from flytekit import LaunchPlan
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.models.core.execution import WorkflowExecutionPhase as Phase
from flytekit.tools.translator import get_serializable
from google.protobuf.json_format import MessageToDict
import workflows.launch_plans

images = [Image(name, "registry.test/steptool", "1") for name in ("cpu", "gpu")]
settings = SerializationSettings(ImageConfig(images[0], images), version="1", project="p", domain="d")
plans = {}
for name in ("nightly_retraining", "weekly_evaluation", "manual_retraining"):
    if plan := LaunchPlan.CACHE.get(name):
        plans[name] = MessageToDict(get_serializable({}, settings, plan).spec.to_flyte_idl())
        plans[name]["inputs"] = sorted(plan.workflow.python_interface.inputs)
print(json.dumps(plans))
"""
BROKEN = {"FAILED", "TIMED_OUT", "ABORTED"}


def declare_plans(profile: Path | None) -> dict[str, Any]:
    """The launch plans by name, as protobuf in JSON."""
    named = {"STEPTOOL_PROFILE": str(profile)} if profile else {}
    environment = {k: v for k, v in os.environ.items() if k != "STEPTOOL_PROFILE"} | named
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    plans: dict[str, Any] = json.loads(process.stdout)
    return plans


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Those of the shipped section, with somebody to tell."""
    section = yaml.safe_load((ROOT / "configs" / "cluster.yaml").read_text())["launch_plans"]
    section["notify"] = {"email": ["ml@firm.test"], "slack": ["alerts@firm.test"], "pagerduty": ["duty@firm.test"]}
    profile = tmp_path_factory.mktemp("profile") / "profile.yaml"
    profile.write_text(yaml.safe_dump({"launch_plans": section}))
    return declare_plans(profile)


def test_without_a_profile_there_is_none_and_all_can_be_registered() -> None:
    assert declare_plans(None) == {}


@pytest.mark.parametrize(("name", "when"), [("nightly_retraining", "0 2 * * *"), ("weekly_evaluation", "0 6 * * 0")])
def test_scheduled_plans_cover_every_input_and_run_one_at_a_time(plans: dict[str, Any], name: str, when: str) -> None:
    plan = plans[name]
    schedule = plan["entityMetadata"]["schedule"]
    assert schedule["cronSchedule"]["schedule"] == when
    assert schedule["kickoffTimeInputArg"] == "kickoff"
    covered = set(plan["fixedInputs"]["literals"]) | {"kickoff"}
    covered |= {k for k, v in plan["defaultInputs"]["parameters"].items() if "default" in v}
    assert covered == set(plan["inputs"])
    assert plan["concurrencyPolicy"] == {"max": 1, "behavior": "CONCURRENCY_LIMIT_BEHAVIOR_SKIP"}
    places = {
        k: v["scalar"]["primitive"]["stringValue"] for k, v in plan["fixedInputs"]["literals"].items() if k != "config"
    }
    assert places == {"registry": "s3://my-bucket/steptool/registry", "output": "s3://my-bucket/steptool/runs"}


def test_a_person_starts_the_same_at_any_time(plans: dict[str, Any]) -> None:
    manual = plans["manual_retraining"]
    assert "schedule" not in manual["entityMetadata"] and not manual.get("fixedInputs", {}).get("literals")
    parameters = manual["defaultInputs"]["parameters"]
    assert {k for k, v in parameters.items() if v.get("required")} == {"kickoff"}
    assert parameters["config"]["default"] == plans["nightly_retraining"]["fixedInputs"]["literals"]["config"]


@pytest.mark.parametrize("name", ["nightly_retraining", "weekly_evaluation", "manual_retraining"])
def test_people_are_told_of_what_broke(plans: dict[str, Any], name: str) -> None:
    notifications = plans[name]["entityMetadata"]["notifications"]
    assert all(set(n["phases"]) == BROKEN for n in notifications)
    ways = {
        way: n[way]["recipientsEmail"] for n in notifications for way in ("email", "slack", "pagerDuty") if way in n
    }
    assert ways == {"email": ["ml@firm.test"], "slack": ["alerts@firm.test"], "pagerDuty": ["duty@firm.test"]}


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"output": "b"}, "field 'launch_plans.registry': field required"),
        ({"registry": "a", "output": "b", "nightly": "0 0 2 * * *"}, "expected five fields of cron"),
        ({"registry": "a", "output": "b", "weekly": "61 2 * * *"}, "field 'launch_plans.weekly'"),
        ({"registry": "a", "output": "b", "hourly": "0 * * * *"}, "unknown field 'launch_plans.hourly'"),
        ({"registry": "a", "output": "b", "notify": {"email": "me@firm.test"}}, "field 'launch_plans.notify.email'"),
    ],
)
def test_what_admin_would_refuse_is_refused_here(tmp_path: Path, section: dict[str, Any], problem: str) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"launch_plans": section}))
    with pytest.raises(ConfigError, match=r"profile\.yaml") as excinfo:
        load_profile(profile)
    assert problem in str(excinfo.value)
