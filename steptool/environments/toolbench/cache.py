"""Fill a file of recorded responses from recorded trajectories, so that runs work without a server.

python -m steptool.environments.toolbench.cache build responses.sqlite runs/first runs/second
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from steptool.environments.base import ToolResult
from steptool.environments.replay import Responses, answered_calls
from steptool.environments.toolbench.environment import response_key
from steptool.environments.toolbench.protocol import endpoints, from_server
from steptool.records import Query, Trajectory
from steptool.records.columns import ContractError
from steptool.records.episodes import read_queries
from steptool.records.tables import read_records, record_class


def record(responses: Responses, queries: Iterable[Query], trajectories: Iterable[Trajectory]) -> int:
    """Add the servers' responses in trajectories of these queries, failures too. Returns the number added."""
    return responses.add(_responses(queries, trajectories))


def _responses(queries: Iterable[Query], trajectories: Iterable[Trajectory]) -> Iterator[tuple[str, ToolResult]]:
    endpoints_of_query = {query.query_id: endpoints(query) for query in queries}
    for trajectory in trajectories:
        for call, result in answered_calls(trajectory):
            if trajectory.query_id in endpoints_of_query and from_server(result.observation):
                yield response_key(endpoints_of_query[trajectory.query_id], call), result


def build(file: str | Path, folders: Sequence[str | Path]) -> tuple[int, int]:
    """Add the recorded calls of folders: of runs, or of what an ingest wrote. All of them or, if one fails, none.

    Each folder holds a Parquet file of queries and any of their trajectories; first recorded is what comes first in
    the order options, and in a folder in the order of the files' names. Returns the number of responses added and that
    of the calls that the file then answers. Raises ContractError naming the folder that has no queries or trajectories.
    """
    contents = [_contents(Path(folder)) for folder in folders]
    responses = Responses(file)
    try:
        added = responses.add(pair for queries, trajectories in contents for pair in _responses(queries, trajectories))
        return added, responses.calls()
    finally:
        responses.close()


def _contents(folder: Path) -> tuple[list[Query], Iterator[Trajectory]]:
    files = [(path, record_class(path)) for path in sorted(folder.glob("*.parquet"))]
    queries = [query for path, cls in files if cls is Query for query in read_queries(path)]
    trajectory_files = [path for path, cls in files if cls is Trajectory]
    if not queries or not trajectory_files:
        raise ContractError(
            f"{folder}: expected Parquet files of queries and of trajectories; name the folder of a run or an ingest"
        )
    return queries, (trajectory for path in trajectory_files for trajectory in read_records(path, Trajectory))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m steptool.environments.toolbench.cache", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="add the recorded calls of folders to a file")
    command.add_argument("file", help="file of recorded responses, made if it is missing")
    command.add_argument("folders", nargs="+", metavar="folder", help="folder of a run or an ingest")
    options = parser.parse_args(arguments)
    try:
        added, calls = build(options.file, options.folders)
    except (ContractError, OSError, sqlite3.Error) as error:
        sys.exit(str(error))
    print(f"{options.file}: {added} responses added, {calls} calls answered")


if __name__ == "__main__":
    main()
