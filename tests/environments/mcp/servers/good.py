"""An MCP server written with the SDK: over stdin and stdout, or over HTTP at the port that is given."""

import os
import sys

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.types import ContentBlock, EmbeddedResource, ImageContent, ResourceLink, TextContent, TextResourceContents

server = MCPServer("good", log_level="WARNING")
called_off: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
async def wait() -> str:
    """Take longer than anybody waits, unless called off."""
    try:
        await anyio.sleep(600)
    except anyio.get_cancelled_exc_class():
        called_off.append("one")
        raise
    return "done"


@server.tool()
def waits() -> str:
    """How often a wait was called off."""
    return str(len(called_off))


@server.tool()
def environment(name: str) -> str:
    """A variable of the server's environment."""
    return os.environ.get(name, "not set")


@server.tool()
def fail(reason: str) -> str:
    """Raise an error."""
    raise ValueError(reason)


@server.tool()
def blocks() -> list[ContentBlock]:
    """Content of every kind."""
    page = TextResourceContents(uri="file:///page.txt", text="the page")
    return [
        TextContent(text="a text"),
        ImageContent(data="iVBORw==", mime_type="image/png"),
        ResourceLink(name="more", uri="file:///more.txt"),
        EmbeddedResource(resource=page),
    ]


if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
