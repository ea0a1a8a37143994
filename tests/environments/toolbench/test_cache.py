import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from steptool.config import Config, ToolsConfig
from steptool.data.ingest import ingest
from steptool.environments.base import ToolResult, open_environment
from steptool.environments.replay import Responses
from steptool.environments.toolbench import ToolBenchEnvironment, build, list_recorded_responses, main
from steptool.records import Query, Reference, Step, StepStatus, StopReason, ToolCall, Trajectory
from steptool.records.columns import ContractError
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, write_records

OK, FAILED = StepStatus.OK, StepStatus.TOOL_ERROR
BERN = {"town": "Bern"}


def step(observation, status=OK, name="forecast_for_sky_watch"):
    return Step(ToolCall(name, BERN), status, observation)


def trajectory_of(*steps, query_id="q"):
    return Trajectory(
        "t", query_id, "toolbench", "", "recorded", -1, 0, 1.0, [], np.zeros(0, np.int32), [], np.zeros(0, np.float32),
        list(steps), StopReason.FINISHED, None, None, 0.0,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, query):
    def make(name, **files):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "queries.parquet", [query], Query)
        for file, observations in files.items():
            write_records(tmp_path / name / f"{file}.parquet", [trajectory_of(*map(step, observations))], Trajectory)
        return tmp_path / name

    return make


def replay_calls(query, responses, name="forecast_for_sky_watch"):
    return ToolBenchEnvironment(None, responses).reset(query).call(ToolCall(name, BERN))


def test_recorded_calls_are_found_whatever_the_function_is_called(query):
    responses = Responses()
    assert responses.add(list_recorded_responses([query], [trajectory_of(step("dry"))])) == 1
    tool = {**query.tools[0], "function": {**query.tools[0]["function"], "name": "renamed"}}
    renamed = replace(
        query,
        tools=(tool,),
        reference=Reference.from_json({"toolbench": {"renamed": ["Weather", "sky_watch", "forecast"]}}),
    )
    assert replay_calls(renamed, responses, "renamed") == ToolResult(OK, "dry")
    elsewhere = replace(
        query,
        reference=Reference.from_json({"toolbench": {"forecast_for_sky_watch": ["Maps", "sky_watch", "forecast"]}}),
    )
    assert "No response is recorded" in replay_calls(elsewhere, responses).observation


def test_calls_of_a_query_that_knows_no_apis_are_kept_by_name(query):
    responses, unnamed = Responses(), replace(query, reference=Reference())
    responses.add(list_recorded_responses([unnamed], [trajectory_of(step("dry"))]))
    assert replay_calls(unnamed, responses) == ToolResult(OK, "dry")
    assert "No response is recorded" in replay_calls(query, responses).observation


def test_failures_of_the_server_are_recorded_and_those_in_its_place_are_not(query):
    responses = Responses()
    down = '{"error": "Message error...", "response": "no such town"}'
    steps = [
        step('{"error": "no answer within 30 s"}', FAILED),
        step('{"error": "the tool cannot be reached: HTTP status 503"}', FAILED),
        step('{"error": "request invalid, data error. status_code=500", "response": ""}', FAILED),
        step('{"error": "No response is recorded for this call.", "response": ""}', FAILED),
        step("what?", StepStatus.INVALID_ARGUMENTS),
        Step(None, StepStatus.MALFORMED, "what?"),
        step(down, FAILED),
    ]
    assert (
        responses.add(
            list_recorded_responses(
                [query], [trajectory_of(*steps), trajectory_of(step("dry"), query_id="of no query")]
            )
        )
        == 1
    )
    assert replay_calls(query, responses) == ToolResult(FAILED, down)


def test_a_cache_is_built_from_folders_in_the_order_given(tmp_path, folder, query):
    file = tmp_path / "responses.sqlite"
    one = folder("one", b=["wet"], a=["dry"])
    two = folder("two", a=["snow", "snow"])
    assert build(file, [one]) == (2, 1)
    assert replay_calls(query, Responses(file)) == ToolResult(OK, "dry")  # a tie: a.parquet comes before b.parquet
    assert build(file, [two]) == (2, 1)
    assert replay_calls(query, Responses(file)) == ToolResult(OK, "snow")


def test_a_folder_without_recordings_is_refused_and_nothing_is_added(tmp_path, folder):
    file = tmp_path / "responses.sqlite"
    with pytest.raises(ContractError, match="two: expected Parquet files of queries and of trajectories"):
        build(file, [folder("one", a=["dry"]), folder("two")])
    with pytest.raises(ContractError, match="missing: expected"):
        build(file, [tmp_path / "missing"])
    assert not file.exists()


def test_the_command_builds_a_cache(tmp_path, folder, query, capsys):
    file, one = tmp_path / "responses.sqlite", folder("one", a=["dry", "dry"])
    main(["build", str(file), str(one)])
    assert capsys.readouterr().out == f"{file}: 2 responses added, 1 calls answered\n"
    command = [
        sys.executable,
        "-m",
        "steptool.environments.toolbench",
        "build",
        str(file),
        str(tmp_path / "missing"),
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert "missing: expected Parquet files of queries" in process.stderr


def test_real_recorded_answers_are_replayed_offline(tmp_path, real_data):
    stable, original = real_data / "stabletoolbench", real_data / "toolbench" / "data_example"
    data = {
        "source": "toolbench",
        "environment": "toolbench",
        "paths": [str(stable / "solvable_queries/test_instruction/G1_instruction.json")],
        "recorded_answers": [str(stable / "data_example/answer"), str(original / "answer")],
    }
    config = Config.model_validate({"data": data})
    result = ingest(config, tmp_path)
    file = tmp_path / "responses.sqlite"
    build(file, [tmp_path])
    environment = open_environment(
        "toolbench", Config(tools=ToolsConfig.model_validate({"toolbench": {"cache": str(file)}}))
    )
    queries: dict[str, Query] = {q.query_id: q for q in read_queries(result.queries_path)}
    assert {q.environment for q in queries.values()} == {"toolbench"}
    recorded = [
        (t.query_id, s) for t in read_records(result.demonstrations_path, Trajectory) for s in t.steps if s.call
    ]
    answers = [(queries[q], s) for q, s in recorded if s.status in (OK, FAILED)]
    assert len(answers) == 35
    for query, was in answers:
        assert environment.reset(query).call(was.call) == ToolResult(was.status, was.observation)
