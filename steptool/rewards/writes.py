"""Which calls change something: what a tool's schema says, else the verb in its name, else what came back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from steptool.chat.tools import reads_only
from steptool.records import Step, StepStatus, ToolCall, ToolSchema

_READING = re.compile(
    r"analy[sz]e|browse|calculate|cat|check|compare|compute|convert|count|describe|detect|diff|"
    r"display|du|estimate|evaluate|examine|fetch|filter|find|forecast|get|grep|head|inspect|inventory|is|"
    r"list|locate|look|lookup|ls|match|mean|measure|parse|peek|predict|preview|query|rank|read|"
    r"recommend|retrieve|search|show|sort|suggest|summari[sz]e|tail|think|track|translate|validate|"
    r"verify|view|wc"
)
"""Verbs of tools that only read."""
_WRITING = re.compile(
    r"accept|activate|add|adjust|allocate|append|apply|approve|archive|assign|authenticate|buy|"
    r"cancel|chmod|create|decline|delete|deploy|disable|edit|enable|enroll|escalate|execute|"
    r"insert|install|invite|join|login|logout|merge|mkdir|modify|move|mv|publish|purchase|reboot|"
    r"refill|register|reject|remove|rename|reorder|reply|reserve|reset|resolve|restart|restock|"
    r"retweet|rm|rmdir|save|send|set|submit|subscribe|terminate|unlock|unsubscribe|update|upload|"
    r"withdraw|write"
)
"""Verbs of tools that change something."""
_WRITING_FIRST = re.compile(
    r"book|cd|charge|checkin|checkout|chop|clear|close|comment|complete|confirm|cook|copy|cp|dice|drop|"
    r"eat|exchange|fill|fund|give|go|issue|lock|mark|open|order|pay|place|post|prepare|press|push|put|"
    r"refund|release|replace|return|schedule|share|sell|slice|start|stop|swap|take|touch|transfer"
)
"""Such verbs that are nouns as well: they count where they begin the name and no noun of reading follows."""
_READ_NOUN = re.compile(r"data|dates?|details?|history|info|information|list|prices?|rates?|stats|status")
"""Nouns by which a name says that it only reads."""
_EFFECT = re.compile(r"\bsuccess(ful)?ly\b|\b(has|have) been (\w+ed|sent|set|made|bought|sold|paid)\b", re.I)
"""How tools report a change: "deleted successfully", "has been cancelled"."""
_REPORT = 200
"""Characters up to which an observation is taken for such a report, and not for data that speaks of changes."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def tools_that_write(tools: Iterable[ToolSchema]) -> dict[str, bool]:
    """Whether a call of each tool changes something, by name, for the tools whose schemas say so."""
    hints = {tool["function"]["name"]: reads_only(tool) for tool in tools if "function" in tool}
    return {name: not reading for name, reading in hints.items() if reading is not None}


def changes_state(step: Step, hints: Mapping[str, bool]) -> bool:
    """Whether a successful step changed something.

    The schema's hint decides. Without one it is the first verb that is known to read or to write: of the command, where
    the tool takes a command such as "take the lamp" or "rm notes.txt", else of the tool's name. Without a verb the
    observation decides: a short report that something was changed.
    """
    if step.call is None or step.status is not StepStatus.OK:
        return False
    if step.call.name in hints:
        return hints[step.call.name]
    for text in (_command(step.call), step.call.name.rpartition(".")[2]):
        reading = _says_reading([word.lower() for word in _WORDS.findall(text)])
        if reading is not None:
            return not reading
    return len(step.observation) <= _REPORT and _EFFECT.search(step.observation) is not None


def _command(call: ToolCall) -> str:
    """The first word of the command that a tool takes; empty for tools without one."""
    commands = (call.arguments.get(name) for name in ("command", "cmd", "action"))
    text = next((command for command in commands if isinstance(command, str)), "")
    return text.strip().partition(" ")[0]


def _says_reading(words: Sequence[str]) -> bool | None:
    """Whether the words of a name say that the tool only reads; None where they say nothing."""
    for place, word in enumerate(words):
        if _READING.fullmatch(word):
            return True
        if _WRITING.fullmatch(word):
            return False
        if place == 0 and _WRITING_FIRST.fullmatch(word):
            return any(map(_READ_NOUN.fullmatch, words))
    return None
