"""Plays episodes at a server with a client of the real package openenv, and prints what it got as JSON.

python openenv_client.py URL
"""

import json
import sys
import urllib.request
from typing import Any

from openenv import GenericEnvClient
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation, ListToolsAction, ToolError

ANSWER = {"return_type": "give_answer", "final_answer": "13"}


def play_with_tools(url: str) -> dict[str, Any]:
    """One episode with the package's own actions, until it is solved."""
    with GenericEnvClient(base_url=url).sync() as client:
        client.reset(split="train", index=0)
        names = [tool["name"] for tool in client.step(ListToolsAction()).observation["tools"]]
        count = client.step(CallToolAction(tool_name="count", arguments={"item": "kettle"}))
        failed = client.step(CallToolAction(tool_name="count", arguments={"item": "moon"}))
        last = client.step(CallToolAction(tool_name="Finish", arguments=ANSWER))
        return {
            "names": names,
            "count": CallToolObservation(**count.observation).result,
            "problem": ToolError(**failed.observation["error"]).error_type.value,
            "reward": last.reward,
            "done": last.done,
        }


def give_up(url: str) -> dict[str, Any]:
    """One episode with plain objects, given up."""
    with GenericEnvClient(base_url=url).sync() as client:
        observation = client.reset(task_id="shop-01").observation
        action = {"type": "call_tool", "tool_name": "Finish", "arguments": {"return_type": "give_up_and_restart"}}
        last = client.step(action)
        return {"shown": observation["instruction"], "reward": last.reward, "done": last.done, "state": client.state()}


def main() -> None:
    """Print what it got, and the tasks that the server lists."""
    url = sys.argv[1]
    request = urllib.request.Request(f"{url}/functions/tasks", b'{"split": "train"}')
    with urllib.request.urlopen(request, timeout=30) as answer:
        tasks = json.load(answer)["tasks"]
    print(json.dumps({"tools": play_with_tools(url), "given_up": give_up(url), "tasks": tasks}))


if __name__ == "__main__":
    main()
