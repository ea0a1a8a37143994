"""The call that ends an episode."""

from __future__ import annotations

from steptool.records import FINISH, ToolSchema

GIVE_ANSWER = "give_answer"
GIVE_UP = "give_up_and_restart"

FINISH_SCHEMA: ToolSchema = {
    "type": "function",
    "function": {
        "name": FINISH,
        "description": "End the task: give the final answer, or give up. Call it exactly once, as the last step.",
        "parameters": {
            "type": "object",
            "properties": {
                "return_type": {"type": "string", "enum": [GIVE_ANSWER, GIVE_UP]},
                "final_answer": {"type": "string", "description": "The answer that the user will see"},
            },
            "required": ["return_type"],
        },
    },
}
