"""The records that stages hand over: what is played, scored, learned from and measured.

Each class marked with `contract` is the contract of a Parquet file; docs/artifacts.md shows their columns.
"""

from steptool.records.episodes import (
    FINISH,
    Message,
    Query,
    Reference,
    Step,
    StepStatus,
    StopReason,
    ToolCall,
    ToolSchema,
    Trajectory,
)
from steptool.records.outcomes import (
    Advantage,
    Cost,
    Evaluation,
    Metric,
    Preference,
    StepReward,
    Verdict,
    VerdictSource,
)

__all__ = [
    "FINISH",
    "Advantage",
    "Cost",
    "Evaluation",
    "Message",
    "Metric",
    "Preference",
    "Query",
    "Reference",
    "Step",
    "StepReward",
    "StepStatus",
    "StopReason",
    "ToolCall",
    "ToolSchema",
    "Trajectory",
    "Verdict",
    "VerdictSource",
]
