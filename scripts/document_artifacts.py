"""Write docs/artifacts.md, the page of the Parquet files, from the records that declare their columns.

python -m scripts.document_artifacts           writes the page
python -m scripts.document_artifacts --check   ends with 1 if the page is not what the records say
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from steptool.data.export import PreferencePair, SftExample
from steptool.records import (
    Advantage,
    Cost,
    Evaluation,
    Metric,
    Preference,
    Query,
    StepReward,
    Trajectory,
    Verdict,
)
from steptool.records.columns import get_contract, get_description

PAGE = Path(__file__).parents[1] / "docs" / "artifacts.md"
HEADER = """\
# Artifacts

Stages hand over Parquet files, and a run's folder keeps all of them. Each file follows a contract: a name, a version
and columns, checked when the file is written and when it is read. The contract's name and version stand in the metadata
of the file (`steptool.contract`, `steptool.version`), and the description of every column in the metadata of its field:

```python
import pyarrow.parquet as pq

print(pq.read_schema("runs/demo/rewards_round_00.parquet").field("contribution").metadata[b"description"].decode())
```

A score that could not be had is null, never 0. JSON documents are text. Any reader of Parquet opens the files (pandas,
polars, DuckDB, Arrow); programs in Python read them as records:

```python
from steptool.records.tables import read_records
from steptool.records import Trajectory

episodes = read_records("runs/demo/trajectories_round_00.parquet", Trajectory)
```

`make docs-artifacts` writes this page from the dataclasses in `steptool/records/`, which declare the columns.
"""
RECORDS: dict[type, str] = {
    Query: "queries.parquet",
    Trajectory: "trajectories_round_NN.parquet, evaluation_trajectories_MODEL_DECODING.parquet, "
    "demonstrations.parquet, lessons.parquet (demonstrations with their tokens), "
    "trajectories_POLICY.parquet of an evaluation",
    StepReward: "rewards_round_NN.parquet, evaluation_rewards_MODEL_DECODING.parquet, recorded_rewards.parquet",
    Advantage: "advantages_round_NN.parquet",
    Evaluation: "evaluations.parquet",
    Verdict: "verdicts.parquet of an evaluation",
    Preference: "preferences.parquet of an evaluation",
    Metric: "metrics.parquet",
    Cost: "costs.parquet",
    SftExample: "sft.parquet of an export",
    PreferencePair: "preference.parquet of an export",
}
"""The records in the order of the page, and the files that hold them."""


@dataclass(frozen=True)
class Question:
    """A question that the files of a run answer, in SQL as DuckDB takes it in the run's folder."""

    text: str
    sql: str


QUESTIONS = (
    Question(
        "How many of the held-out tasks does each model solve, by tier?",
        """\
SELECT model, tier, count(*) AS tasks, round(avg(passed), 3) AS pass_rate
FROM 'evaluations.parquet'
WHERE decoding = 'greedy' AND split = 'heldout'
GROUP BY model, tier ORDER BY tier, pass_rate DESC, model;""",
    ),
    Question(
        "Which tasks did training break, and which call of them failed first?",
        """\
SELECT q.instruction, [s FOR s IN t.steps IF s.status NOT IN ('ok', 'finish')][1].call_name AS failed_call
FROM 'evaluations.parquet' AS before
JOIN 'evaluations.parquet' AS after USING (query_id, decoding, repeat)
JOIN 'queries.parquet' AS q USING (query_id)
JOIN 'evaluation_trajectories_steptool_greedy.parquet' AS t ON t.trajectory_id = after.trajectory_id
WHERE before.model = 'warm_start' AND after.model = 'steptool' AND decoding = 'greedy'
    AND before.passed > 0.5 AND after.passed < 0.5
ORDER BY q.instruction;""",
    ),
    Question(
        "Which tools fail most often in training?",
        """\
SELECT step.call_name AS tool, count(*) AS calls, round(avg((step.status <> 'ok')::INT), 3) AS failed
FROM (SELECT unnest(steps) AS step FROM 'trajectories_round_*.parquet')
WHERE step.status <> 'finish' AND step.call_name IS NOT NULL
GROUP BY tool ORDER BY failed DESC, tool;""",
    ),
    Question(
        "Do the calls of solved episodes earn a higher Contribution than those of the others?",
        """\
SELECT t.round, t.solved > 0.5 AS solved, round(avg(r.contribution), 3) AS contribution, count(r.contribution) AS calls
FROM 'trajectories_round_*.parquet' AS t JOIN 'rewards_round_*.parquet' AS r USING (trajectory_id)
WHERE t.solved IS NOT NULL
GROUP BY t.round, solved ORDER BY t.round, solved;""",
    ),
    Question(
        "Where does the time of the rounds go?",
        """\
SELECT stage, round(sum(seconds), 1) AS seconds, sum(tokens) AS tokens, max(peak_memory_mb) AS peak_memory_mb
FROM 'costs.parquet'
WHERE round >= 0
GROUP BY stage ORDER BY seconds DESC, stage;""",
    ),
)


def page() -> str:
    """The text of docs/artifacts.md."""
    questions = "\n".join(f"### {q.text}\n\n```sql\n{q.sql}\n```\n" for q in QUESTIONS)
    intro = "## Questions in SQL\n\nWith DuckDB, in the folder of a run (`cd runs/demo && duckdb`):\n\n"
    return "\n".join([HEADER, intro + questions, *(_write_section(cls, files) for cls, files in RECORDS.items())])


def _write_section(cls: type, files: str) -> str:
    contract = get_contract(cls)
    rows = "\n".join(row for field in contract.schema for row in _write_rows(field, ""))
    return (
        f"## {contract.name}\n\n{inspect.getdoc(cls)}\n\nVersion {contract.version}, class `{cls.__name__}`. "
        f"Files: {files}.\n\n| column | type | null | what it holds |\n|---|---|---|---|\n{rows}\n"
    )


def _write_rows(field: pa.Field, parent: str) -> Iterator[str]:
    """The row of a column, and one for each field of a nested column."""
    null = "yes" if field.nullable else ""
    description = get_description(field).replace("|", "\\|")
    kind = field.type.value_type if pa.types.is_list(field.type) else field.type
    nested_fields = list(kind) if pa.types.is_struct(kind) else []
    kind_name = "list of structs" if nested_fields else re.sub(r"\w+: ", "", str(field.type))
    yield f"| {parent}{field.name} | `{kind_name}` | {null} | {description} |"
    for inner in nested_fields:
        yield from _write_rows(inner, f"{parent}{field.name}.")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE}: not what steptool/records/ says; run make docs-artifacts", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
