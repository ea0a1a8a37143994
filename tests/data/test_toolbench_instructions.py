import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quarantine import read_quarantine
from steptool.chat.messages import FINISH_SCHEMA
from steptool.config import Config
from steptool.data.parsing import IngestError, IngestLog, UnusableError
from steptool.data.sources import SourceInputs, ToolBenchSource, read_instruction
from steptool.data.tools import ToolCatalog, make_tool_schemas
from steptool.environments.schema import check_arguments, check_tools
from steptool.environments.toolbench import avoid_reserved, list_endpoints, make_function_name
from steptool.records import Reference

FILE = Path("G9_weather.json")


def read_instructions(paths, log=None):
    config = Config.model_validate({"data": {"source": "toolbench", "paths": paths}})
    return list(ToolBenchSource().read_queries(SourceInputs(config, ToolCatalog(config), log or IngestLog())))


def test_an_instruction_becomes_a_query(instruction):
    query = read_instruction(instruction, FILE, 0)
    assert query.instruction == instruction["query"]
    assert (query.query_id, query.tier, query.environment) == ("G9_weather-7", "G9_weather", "replay")
    endpoints = {
        "forecast_day_for_sky_watch": ["Weather", "sky_watch", "forecast_day"],
        "warnings_for_sky_watch": ["Weather", "sky_watch", "warnings"],
    }
    assert query.reference == Reference(tools=("forecast_day_for_sky_watch",), environment={"toolbench": endpoints})
    forecast, warnings, finish = query.tools
    assert forecast["function"] == {
        "name": "forecast_day_for_sky_watch",
        "description": "What it does",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "examples": ["Bern"]},
                "days": {"type": "number", "default": 3},
            },
            "required": ["town"],
        },
    }
    assert warnings["function"]["description"] == "Warnings (Sky Watch)"
    assert finish == FINISH_SCHEMA


@pytest.mark.parametrize(
    ("written", "value", "wrong"),
    [
        ("STRING", "x", 1),
        ("string", "x", 1),
        ("NUMBER", 1.5, "x"),
        ("BOOLEAN", True, "x"),
        ("ARRAY", [1], "x"),
        ("OBJECT", {"a": 1}, "x"),
        ("ENUM", "x", 1),
        ("DATE (YYYY-MM-DD)", "2024-02-29", 1),
        ("TENSOR", "x", 1),
        (None, "x", 1),
    ],
)
def test_types_become_those_of_json_schema(instruction, written, value, wrong):
    instruction["api_list"][0]["required_parameters"][0]["type"] = written
    parameters = read_instruction(instruction, FILE, 0).tools[0]["function"]["parameters"]
    assert check_arguments(parameters, {"town": value}) is None
    assert check_arguments(parameters, {"town": wrong}) is not None


def test_parameter_names_are_those_of_the_calls(instruction):
    api = instruction["api_list"][0]
    api["required_parameters"] = [{"name": n, "type": "STRING"} for n in ("id", "filter[Name]", "x-lang", "id")]
    parameters = read_instruction(instruction, FILE, 0).tools[0]["function"]["parameters"]
    assert list(parameters["properties"]) == ["is_id", "filter_name", "x_lang", "days"]
    assert parameters["required"] == ["is_id", "filter_name", "x_lang"]


def test_long_names_that_end_alike_stay_apart(instruction):
    first, second = instruction["api_list"]
    first["api_name"], second["api_name"] = "today " + "y" * 70, "tomorrow " + "y" * 70
    names = [t["function"]["name"] for t in make_tool_schemas(instruction["api_list"]).values()]
    assert len(set(names)) == 2 and all(len(n) == 64 for n in names)
    assert names[0] == make_function_name(first["api_name"], first["tool_name"])


def test_long_names_that_end_alike_lead_back_to_their_own_apis(instruction):
    first, second = instruction["api_list"]
    first["api_name"], second["api_name"] = "today " + "y" * 70, "tomorrow " + "y" * 70
    apis = list_endpoints(read_instruction(instruction, FILE, 0))
    assert [api for _, _, api in apis.values()] == ["today_" + "y" * 70, "tomorrow_" + "y" * 70]


def test_an_api_without_a_category_has_no_way_back(instruction):
    del instruction["api_list"][0]["category_name"]
    query = read_instruction(instruction, FILE, 0)
    assert len(query.tools) == 3 and list(list_endpoints(query)) == ["warnings_for_sky_watch"]


def test_the_same_api_twice_is_one_tool(instruction):
    instruction["api_list"].append(instruction["api_list"][0])
    assert len(make_tool_schemas(instruction["api_list"])) == 2


VALUE = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
PARAMETERS = st.lists(
    st.fixed_dictionaries(
        {"name": st.text(max_size=6)}, optional=dict.fromkeys(("type", "description", "default"), VALUE)
    ),
    max_size=3,
)


@given(PARAMETERS, PARAMETERS, VALUE)
def test_any_parameters_make_a_tool_schema_or_are_refused(required, optional, description):
    api = {"tool_name": "Sea", "api_name": "tides", "required_parameters": required, "optional_parameters": optional}
    try:
        schemas = make_tool_schemas([api | {"api_description": description}])
    except UnusableError as error:
        assert error.reason == "empty field 'name'"
    else:
        check_tools(list(schemas.values()), "api_list")


@given(st.text(max_size=90), st.text(max_size=90))
def test_any_names_make_a_tool_schema(tool, api):
    name = {"tool_name": tool, "api_name": api, "required_parameters": [], "optional_parameters": []}
    if tool.strip() and api.strip():
        check_tools(list(make_tool_schemas([name]).values()), "api_list")
    else:
        with pytest.raises(UnusableError):
            make_tool_schemas([name])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda r: r.pop("query"), "'query'"),
        (lambda r: r.update(query="  \n"), "'query'"),
        (lambda r: r.update(query=["Will it rain?"]), "'query'"),
        (lambda r: r.pop("api_list"), "'api_list'"),
        (lambda r: r.update({"relevant APIs": 3}), "'relevant APIs'"),
        (lambda r: r["api_list"][1].pop("tool_name"), r"api_list[1].tool_name"),
        (lambda r: r["api_list"][0].update(required_parameters=None), r"api_list[0].required_parameters"),
        (lambda r: r["api_list"][0]["required_parameters"][0].pop("name"), r"api_list[0].required_parameters[0].name"),
        (lambda r: r["api_list"].append("Tides"), r"api_list[2]"),
    ],
)
def test_a_malformed_record_is_set_aside_with_its_place(tmp_path, write_json, instruction, spoil, named):
    good = json.loads(json.dumps(instruction))
    spoil(instruction)
    file = write_json(tmp_path / "G9.json", [good, instruction, good])
    log = IngestLog()
    assert len(read_instructions([str(tmp_path)], log)) == 2
    (aside,) = read_quarantine(log)
    assert (aside["file"], aside["row"], aside["record"]) == (str(file), 1, instruction)
    assert named in aside["detail"]
    assert log.counts["queries read"] == 1 and log.counts[f"queries dropped: {aside['reason']}"] == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"\xff\xfe[]", "not UTF-8 text"),
        (b'{"7": 0}', "not a list of instructions"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
    ],
)
def test_a_file_of_another_kind_is_set_aside_whole(tmp_path, content, reason):
    (tmp_path / "odd.json").write_bytes(content)
    log = IngestLog()
    assert read_instructions([str(tmp_path)], log) == []
    assert [(a["reason"], a["row"]) for a in read_quarantine(log)] == [(reason, None)]


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(IngestError, match=r"data\.paths: '.*missing' does not exist"):
        read_instructions([str(tmp_path / "missing")])
    with pytest.raises(IngestError, match=r"has no \.json file"):
        read_instructions([str(tmp_path)])


def test_half_a_surrogate_pair_does_not_stop_the_writing(tmp_path, instruction):
    text = json.dumps([instruction]).replace("Bern tomorrow?", r"Bern \ud83d tomorrow \ud83d\ude00?")
    (tmp_path / "G9.json").write_text(text)
    (query,) = read_instructions([str(tmp_path)])
    assert "Bern \ufffd tomorrow \U0001f600?" in query.instruction
    query.instruction.encode()


def test_every_real_query_comes_through(real_data):
    log = IngestLog()
    folder = real_data / "stabletoolbench" / "solvable_queries" / "test_instruction"
    queries = read_instructions([str(folder)], log)
    sizes = {tier: sum(q.tier == tier for q in queries) for tier in {q.tier for q in queries}}
    assert sorted(sizes.values()) == [61, 106, 124, 153, 158, 163]
    assert not read_quarantine(log) and len(queries) == 765
    raw = {f"{f.stem}-{r['query_id']}": r for f in folder.glob("*.json") for r in json.loads(f.read_text("utf-8"))}
    for query in queries:
        record = raw[query.query_id]
        assert query.instruction == record["query"]
        assert len(query.tools) == len({(a["tool_name"], a["api_name"]) for a in record["api_list"]}) + 1
        assert len(query.reference.tools) == len({tuple(pair) for pair in record["relevant APIs"]})


def test_every_real_function_leads_back_to_its_api(real_data):
    folders = ["stabletoolbench/solvable_queries/test_instruction", "toolbench/data_example/instruction"]
    queries = read_instructions([str(real_data / folder) for folder in folders])
    named = 0
    for query in queries:
        apis = list_endpoints(query)
        assert set(apis) == {t["function"]["name"] for t in query.tools} - {"Finish"}
        for name, (_, tool, api) in apis.items():
            forward = make_function_name(api, tool)
            assert name in (forward, *(f"{forward[:62]}_{number}" for number in range(2, 10)))
            named += 1
    assert named > 4000


def test_real_recorded_function_lists_are_reproduced(real_data):
    folder = real_data / "stabletoolbench"
    queries = {q.instruction: q for q in read_instructions([str(folder / "solvable_queries/test_instruction")])}
    answers = [json.loads(f.read_text("utf-8")) for f in (folder / "data_example/answer").rglob("*.json")]
    assert answers
    for answer in (a["answer_generation"] for a in answers):
        actual = [t["function"] for t in queries[answer["query"]].tools]
        assert [f["name"] for f in actual] == [f["name"] for f in answer["function"]]
        for mine, expected in zip(actual[:-1], answer["function"], strict=False):
            assert set(expected["parameters"]["properties"]) <= set(mine["parameters"]["properties"])


def test_real_function_names_of_all_recorded_answers_keep_the_rules(real_data):
    """Answers without an instruction: a name is <api>_for_<tool>, and each part is already standard."""
    for file in (real_data / "toolbench" / "data_example" / "answer").rglob("*.json"):
        for function in json.loads(file.read_text("utf-8"))["answer_generation"]["function"]:
            if function["name"] != "Finish":
                api, _, tool = function["name"].rpartition("_for_")
                assert make_function_name(api, tool) == function["name"]
                for name in function["parameters"]["properties"]:
                    assert avoid_reserved(name) == name
