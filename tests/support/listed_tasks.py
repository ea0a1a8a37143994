"""Tasks that an environment lists itself, and the answer that ends an episode of one."""

from pathlib import Path

from steptool.config import Config
from steptool.data.ingest import ingest
from steptool.records import FINISH, Query, ToolCall
from steptool.records.episodes import read_queries


def read_tasks(config: Config, folder: Path) -> dict[str, Query]:
    """The tasks that ingest keeps, by their ids."""
    return {q.query_id: q for q in read_queries(ingest(config, folder, for_training=False).queries_path)}


def finish(answer: str) -> ToolCall:
    """The call with which a policy answers."""
    return ToolCall(FINISH, {"return_type": "give_answer", "final_answer": answer})
