"""What the words of a request ask for: its goals, and the branches of a goal that depends on a condition.

"Escalate tck_04 if it is major, otherwise name its author, then track the parcel of ord_07" holds two goals. The first
has two branches; which of them is requested depends on the state that a call observes. Only words are compared: a
request that says "undo" for a tool named cancel_order names no tool, and then nothing is known of what it asks for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from steptool.rewards.observations import normalise

_GOAL = re.compile(r"[.;!?]\s+|,? (?:and also|and then|then|and) ")
_CLAUSE = re.compile(r",\s+|\s+(?=(?:otherwise|else)\b)")
_STATE = r"\b(?:is|are|was|were) (?P<no>not )?(?P<value>[\w.-]+(?: [\w.-]+){0,2})"
_DO_IF = re.compile(rf"(?P<do>.+?) (?P<if>if|when|unless) .*?{_STATE}[.!?]?")
_IF_DO = re.compile(rf"(?P<if>if|when|unless) .*?{_STATE}")
_OTHERWISE = re.compile(r"(?:otherwise|else|if not)\b,? ?(?P<do>.*)")
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_FUNCTION_WORD = re.compile(
    r"a|also|an|and|are|at|be|by|could|else|find|for|from|get|give|how|i|ids?|if|in|is|its?|make|me|my|need|not|of|on|"
    r"or|otherwise|out|please|say|sure|tell|that|the|then|to|us|user|was|were|what|where|which|who|with|you|your"
)
"""Words that say nothing of what is requested."""
_ENDINGS = ("ing", "ed", "es", "s", "e")
_STEM = 3
"""Letters that a word keeps when it loses an ending."""


@dataclass(frozen=True)
class Branch:
    """One thing to do, always or where a condition holds."""

    words: frozenset[str]
    """Stems of the words that say what to do."""
    value: str = ""
    """The state that its condition names, normalised; empty for a branch without a condition."""
    affirmed: bool = True
    """Whether it is to be done where that state was observed, and not where it was not."""

    def is_requested(self, observed: Collection[str]) -> bool:
        """Whether it is to be done, by the values that were observed."""
        return not self.value or (self.value in observed) == self.affirmed


Goal = tuple[Branch, ...]


def stems(text: str) -> frozenset[str]:
    """The stems of the words of a text or of a name such as getOrder or refund_id, without function words."""
    return frozenset(_stem(word) for word in map(str.lower, _WORD.findall(text)) if not _FUNCTION_WORD.fullmatch(word))


def _stem(word: str) -> str:
    ending = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= _STEM), "")
    return word.removesuffix(ending)


def read_goals(instruction: str) -> list[Goal]:
    """The goals of a request, in order."""
    return [tuple(_read_branches(text)) for text in _GOAL.split(normalise(instruction)) if text.strip()]


def _read_branches(text: str) -> Iterator[Branch]:
    condition = Branch(frozenset())
    opens = False  # whether the condition stands before what it is about
    for clause in _CLAUSE.split(text.strip()):
        if match := _OTHERWISE.fullmatch(clause):
            yield Branch(stems(match["do"]), condition.value, not condition.affirmed)
        elif match := _IF_DO.fullmatch(clause):
            condition, opens = _read_condition(match, ""), True
        elif match := _DO_IF.fullmatch(clause):
            condition = _read_condition(match, match["do"])
            yield condition
        else:
            yield Branch(stems(clause), condition.value, condition.affirmed) if opens else Branch(stems(clause))
            opens = False


def _read_condition(match: re.Match[str], do: str) -> Branch:
    return Branch(stems(do), match["value"], (match["no"] is None) == (match["if"] != "unless"))


def requested_words(goal: Goal, observed: Collection[str]) -> tuple[set[str], set[str]]:
    """The stems of what is requested, and of what a condition excludes, by the values that were observed."""
    requested, excluded = set[str](), set[str]()
    for branch in goal:
        (requested if branch.is_requested(observed) else excluded).update(branch.words)
    return requested, excluded
