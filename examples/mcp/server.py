"""A library's catalogue as an MCP server: the tools of configs/mcp.yaml.

It talks over stdin and stdout, a process per episode, so that each episode begins with the same shelves.
`python examples/mcp/server.py 8000` serves http://127.0.0.1:8000/mcp instead.
"""

import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

SHELVES = {"atlas": "A3", "herbal": "B1", "bestiary": "C7", "almanac": "A1", "lexicon": "D4", "cookbook": "B2"}
COPIES = {"atlas": 2, "herbal": 1, "bestiary": 3, "almanac": 4, "lexicon": 1, "cookbook": 5}

READS = ToolAnnotations(read_only_hint=True)

server = MCPServer("library", log_level="WARNING")
copies = dict(COPIES)


@server.tool(annotations=READS)
def shelf(title: str) -> str:
    """Say on which shelf a book stands."""
    return SHELVES[_known(title)]


@server.tool(annotations=READS)
def available(title: str) -> int:
    """Say how many copies of a book can be lent."""
    return copies[_known(title)]


@server.tool()
def lend(title: str, reader: str) -> str:
    """Lend a copy of a book to a reader. Returns the number of the loan."""
    if not copies[_known(title)]:
        raise ToolError(f"all copies of '{title}' are lent")
    copies[title] -= 1
    return f"{title}-{reader}-{COPIES[title] - copies[title]}"


def _known(title: str) -> str:
    if title not in SHELVES:
        raise ToolError(f"no book has the title '{title}'")  # the text of other exceptions stays with the server
    return title


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
