"""An MCP server over stdin and stdout, written out line by line, whose tools are as bad as tools can be."""

import json
import os
import sys
import time

TOOLS = {
    "pid": "its process",
    "count": "how many calls there were",
    "chatter": "writes to stdout before it answers",
    "flood": "writes a lot to stderr before it answers",
    "die": "ends the process",
    "hang": "never answers, nor does the server from then on",
    "dawdle": "never answers; the server goes on",
    "cancelled": "ids of the requests that were called off",
    "garbage": "answers with what is not JSON",
    "broken": "answers with a result that is none",
    "refuse": "answers with an error of the protocol",
    "immense": "answers with 64 MiB",
    "endless": "answers with a line that does not end",
    "docs.read/v2": "has a name that needs mending",
}
PAGE = 5


def answer(request_id, result):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}) + "\n")
    sys.stdout.flush()


def text(request_id, value):
    answer(request_id, content(value))


def content(value):
    return {"content": [{"type": "text", "text": str(value)}]}


def list_tools(params):
    start = int((params or {}).get("cursor") or 0)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tools = [{"name": n, "description": d, "inputSchema": schema} for n, d in list(TOOLS.items())[start : start + PAGE]]
    return {"tools": tools, **({"nextCursor": str(start + PAGE)} if start + PAGE < len(TOOLS) else {})}


def refuse(request_id, message):
    error = {"code": -32000, "message": message}
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}) + "\n")
    sys.stdout.flush()


def write_long(request_id, mebibytes):
    before, after = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": content("|")}).split("|")
    sys.stdout.write(before)
    for _ in range(mebibytes):
        sys.stdout.write("x" * 2**20)
    sys.stdout.write(after + "\n")
    sys.stdout.flush()


def call(request_id, name):
    if name == "chatter":
        sys.stdout.write("loading the model...\n{\n")
    if name == "flood":
        sys.stderr.write("a warning that nobody reads\n" * 40_000)
    if name == "die":
        sys.stderr.write("out of cheese\n")
        sys.stderr.flush()
        os._exit(3)
    if name == "hang":
        time.sleep(600)
    if name == "garbage":
        sys.stdout.buffer.write(b"\xff\xfe \x00 %%% {]\n")
        sys.stdout.flush()
    elif name == "broken":
        answer(request_id, {"content": 5})
    elif name == "refuse":
        refuse(request_id, "no such luck")
    elif name == "pid":
        text(request_id, os.getpid())
    elif name in ("immense", "endless"):
        write_long(request_id, 64 if name == "immense" else sys.maxsize)
    elif name == "cancelled":
        text(request_id, json.dumps(cancelled))
    elif name != "dawdle":
        text(request_id, calls)


calls, cancelled = 0, []
for line in sys.stdin:
    message = json.loads(line)
    method, params, number = message.get("method"), message.get("params"), message.get("id")
    if method == "initialize":
        info = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}}
        answer(number, {**info, "serverInfo": {"name": "rough", "version": "1"}})
    elif method == "tools/list":
        answer(number, list_tools(params))
    elif method == "tools/call":
        calls += 1
        call(number, params["name"])
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif number is not None:
        sys.stdout.write(
            json.dumps({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no"}}) + "\n"
        )
        sys.stdout.flush()
