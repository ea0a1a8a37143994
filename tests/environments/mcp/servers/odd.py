"""An MCP server over stdin and stdout whose list of tools holds what a list should not hold."""

import json
import os
import sys

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TUPLE = {"type": "array", "items": [{"type": "integer"}, {"type": "string"}]}
LONG = "x" * 70
TOOLS = [
    {"name": "docs.read", "inputSchema": TEXT},
    {"name": "docs/read", "inputSchema": TEXT},
    {"name": "docs_read_2", "inputSchema": TEXT},
    {"name": "天气", "inputSchema": TEXT},
    {"name": "新闻", "inputSchema": TEXT},
    {"name": f"{LONG}1", "inputSchema": TEXT},
    {"name": f"{LONG}2", "inputSchema": TEXT},
    {"name": "draft", "inputSchema": {"$schema": DRAFT_7, "type": "object", "properties": {"pair": TUPLE}}},
    {"name": "no_schema"},
    {"name": "red \u001b[31m \u009b31m"},
    {"name": "no_object", "inputSchema": {"type": "string"}},
    {"name": "endless", "inputSchema": {"type": "object", "$ref": "#"}},
    {"name": "shape", "inputSchema": TEXT, "description": "Answers with the fields that the text holds as JSON."},
    {"name": "token", "inputSchema": {"type": "object"}, "description": os.environ.get("TOKEN", "")},
    {
        "name": "slow",
        "inputSchema": {"type": "object"},
        "outputSchema": {"type": "object", "properties": {"text": {"type": "string", "pattern": "^(a+)+$"}}},
    },
]
if "only-bad" in sys.argv:
    TOOLS = [tool for tool in TOOLS if tool["name"] in ("no_schema", "endless")]


def call_tool(name, arguments):
    if name == "slow":
        return {"content": [], "structuredContent": {"text": "a" * 60 + "!"}}
    token = os.environ.get("TOKEN", "")
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in token)
    texts = {"token": f'{{"as is": {json.dumps(token)}, "escaped": "{escaped}"}}'}
    return {"content": [{"type": "text", "text": texts.get(name, f"{name} {json.dumps(arguments)}")}]}


for line in sys.stdin:
    message = json.loads(line)
    method, number = message.get("method"), message.get("id")
    reply = {}
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        about = {"serverInfo": {"name": "odd", "version": "1"}, "capabilities": {"tools": {}}}
        reply = {"result": {"protocolVersion": version, **about}}
    elif method == "tools/list":
        reply = {"result": {"tools": TOOLS}}
    elif method == "tools/call" and message["params"]["name"] == "draft":
        reply = {"error": {"code": -32000, "message": f"not with {os.environ.get('TOKEN', '')}"}}
    elif method == "tools/call" and message["params"]["name"] == "shape":
        reply = json.loads(message["params"]["arguments"]["text"])
    elif method == "tools/call":
        reply = {"result": call_tool(message["params"]["name"], message["params"].get("arguments"))}
    elif number is not None:
        reply = {"error": {"code": -32601, "message": "no"}}
    if number is not None:
        print(json.dumps({"jsonrpc": "2.0", "id": number, **reply}), flush=True)
