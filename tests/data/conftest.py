"""Small material in the real formats, with content of our own."""

from __future__ import annotations

import copy
import json

import pytest

from steptool.config import Config


def parameter(name, kind="STRING", default="", description=""):
    return {"name": name, "type": kind, "description": description, "default": default}


def api(tool, name, required=(), optional=(), description="What it does"):
    return {
        "category_name": "Weather",
        "tool_name": tool,
        "api_name": name,
        "api_description": description,
        "required_parameters": list(required),
        "optional_parameters": list(optional),
        "method": "GET",
    }


FORECAST = api("Sky Watch", "Forecast/Day", [parameter("town", default="Bern")], [parameter("days", "NUMBER", 3)])
WARNINGS = api("Sky Watch", "Warnings", description=" ")
QUESTION = "Will it rain in Bern tomorrow? ☔\nAnd are there warnings?"


@pytest.fixture
def instruction():
    return {
        "api_list": copy.deepcopy([FORECAST, WARNINGS]),
        "query": QUESTION,
        "relevant APIs": [["Sky Watch", "Forecast/Day"]],
        "query_id": 7,
    }


FUNCTIONS = [
    {
        "name": "forecast_day_for_sky_watch",
        "description": "Forecast of a town",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "", "example_value": "Bern"},
                "days": {"type": "integer", "description": "", "example_value": 3},
            },
            "required": ["town"],
            "optional": ["days"],
        },
    },
    {
        "name": "warnings_for_sky_watch",
        "description": "",
        "parameters": {"type": "object", "properties": {}, "required": [], "optional": []},
    },
    {"name": "Finish", "description": "", "parameters": {"type": "object", "properties": {}, "required": []}},
]
RAIN = '{"error": "", "response": "{\'rain\': \\"9 mm\\", \'icon\': \'\\u2614\'}\\n\\u0000"}'
DOWN = '{"error": "Timeout error...", "response": ""}'


def assistant(name, arguments, content=None):
    return {"role": "assistant", "content": content, "function_call": {"name": name, "arguments": arguments}}


def response(name, content):
    return {"role": "function", "name": name, "content": content}


def finish(answer="It rains."):
    return assistant("Finish", json.dumps({"return_type": "give_answer", "final_answer": answer}))


@pytest.fixture
def tree_answer():
    """A search tree with training messages: the full path is in the last of them."""
    path = [
        {"role": "system", "content": "You may call functions."},
        {"role": "user", "content": f"\n{QUESTION}\nBegin!\n"},
        assistant("warnings_for_sky_watch", "{}", "First the warnings."),
        response("warnings_for_sky_watch", DOWN),
        {"role": "user", "content": "An earlier attempt failed.", "valid": False},
        {"role": "assistant", "content": "Then the forecast."},
        assistant("forecast_day_for_sky_watch", '{\n  "town": "Bern"\n}'),
        response("forecast_day_for_sky_watch", RAIN),
        finish(),
    ]
    return {
        "win": True,
        "tree": {"tree": {"node_type": "Action Input", "description": "", "children": []}},
        "answer_generation": {
            "valid_data": True,
            "function": copy.deepcopy(FUNCTIONS),
            "train_messages": [path[:3], path],
            "query": QUESTION,
        },
    }


def nodes(name, arguments, observation, code=0):
    return [
        {"node_type": "Action", "description": name},
        {"node_type": "Action Input", "description": arguments, "observation": observation, "observation_code": code},
    ]


@pytest.fixture
def chain_answer():
    """A chain that ran out of steps: no training messages."""
    chain = [
        *nodes("warnings_for_sky_watch", "{}", DOWN),
        {"node_type": "Thought", "description": "Again."},
        *nodes("forecast_day_for_sky_watch", '{"town": "Bern"}', RAIN),
    ]
    return {
        "win": False,
        "trys": [{"chain": nodes("warnings_for_sky_watch", "{}", "{}")}, {"chain": chain}],
        "answer_generation": {
            "valid_data": False,
            "final_answer": "",
            "function": copy.deepcopy(FUNCTIONS),
            "train_messages": [],
            "query": QUESTION,
        },
    }


@pytest.fixture
def configured():
    """A configuration for files, with limits that drop nothing unless they are given."""

    def make(source, paths, recorded=(), environment="", **counts):
        sizes = {f"{split}_queries": counts.get(split, 1000) for split in ("train", "validation", "heldout")}
        data = {"source": source, "paths": [str(p) for p in paths], "recorded_answers": [str(p) for p in recorded]}
        data["environment"] = environment
        return Config.model_validate({"data": data | sizes})

    return make


@pytest.fixture
def write_json():
    """Write a document to a path below a folder that is made for it."""

    def write(path, document):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    return write
