"""What a request asks for, and calls that only tell the user something: whether what they tell answers the request.

"Escalate tck_04 if it is major, otherwise name its author, then track the parcel of ord_07" holds two goals. The first
has two branches; which of them is requested depends on the state that a call observes. Only words are compared: a
request that says "undo" for a tool named cancel_order names no tool, and then nothing is known of what it asks for.

A call that only tells takes the place of a final answer, or of a part of it: report(value="ref_12"). It changes nothing
but what the user knows, so its worth depends on the values that it quotes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steptool.chat.messages import reports_only
from steptool.records import FINISH, Query, Step, StepStatus, ToolSchema, Trajectory
from steptool.rewards.observations import (
    LOOKS_LIKE_A_THING,
    find_values,
    iterate_leaves,
    mentions,
    normalise,
    read_payload,
)

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
_NAME = re.compile(
    r"(report|tell|inform|answer|respond|reply)(_?(to_?)?(user|customer|result|answer|value)s?)?|"
    r"(final|give|submit|return)_?answer",
    re.I,
)
"""Names of tools that tell the user something."""
_DESCRIPTION = re.compile(
    r"(tell|inform|answer|respond to|reply to|report to) the (user|customer|caller)\b(?!['’]s)|"
    r"(report|submit|give|return|provide) (the|your|a) final (answer|result|outcome)\b",
    re.I,
)
"""How descriptions of such tools begin."""
_ADDRESS = re.compile(r"(^|[^a-z])(ids?|to|recipients?|receivers?|e-?mails?|channels?)$", re.I)
"""Names of arguments that address somebody else, or a thing."""
_IDENTIFYING = re.compile(r"\d")


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


def stem_words(text: str) -> frozenset[str]:
    """The stems of the words of a text or of a name such as getOrder or refund_id, without function words."""
    return frozenset(
        _strip_ending(word) for word in map(str.lower, _WORD.findall(text)) if not _FUNCTION_WORD.fullmatch(word)
    )


def _strip_ending(word: str) -> str:
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
            yield Branch(stem_words(match["do"]), condition.value, not condition.affirmed)
        elif match := _IF_DO.fullmatch(clause):
            condition, opens = _read_condition(match, ""), True
        elif match := _DO_IF.fullmatch(clause):
            condition = _read_condition(match, match["do"])
            yield condition
        else:
            yield (
                Branch(stem_words(clause), condition.value, condition.affirmed) if opens else Branch(stem_words(clause))
            )
            opens = False


def _read_condition(match: re.Match[str], do: str) -> Branch:
    return Branch(stem_words(do), match["value"], (match["no"] is None) == (match["if"] != "unless"))


def collect_requested_words(goal: Goal, observed: Collection[str]) -> tuple[set[str], set[str]]:
    """The stems of what is requested, and of what a condition excludes, by the values that were observed."""
    requested, excluded = set[str](), set[str]()
    for branch in goal:
        (requested if branch.is_requested(observed) else excluded).update(branch.words)
    return requested, excluded


def find_reports(query: Query, trajectory: Trajectory, failures: Sequence[str]) -> list[bool]:
    """For each step [T], whether it told the user something and did nothing else.

    The schema's hint decides. Without one it is the name or the description of the tool, where the call addresses
    nothing and returned no more than a receipt: an id or a number in its observation says that it has made something.
    """
    schemas = {tool["function"]["name"]: tool for tool in query.tools if "function" in tool}
    return [
        not failed
        and step.status is StepStatus.OK
        and _is_report(step, schemas.get(step.call.name if step.call else ""))
        for step, failed in zip(trajectory.steps, failures, strict=True)
    ]


def _is_report(step: Step, schema: ToolSchema | None) -> bool:
    if step.call is None or schema is None or step.call.name == FINISH:
        return False
    hint = reports_only(schema)
    if hint is not None:
        return hint
    description = str(schema["function"].get("description") or "").strip()
    if not _NAME.fullmatch(step.call.name.rpartition(".")[2]) and not _DESCRIPTION.match(description):
        return False
    makes = any(map(_IDENTIFYING.search, find_values(read_payload(step.observation))))
    return not makes and not any(map(_ADDRESS.search, step.call.arguments))


@dataclass
class _Stretch:
    """The values that the steps since the last report returned."""

    values: set[str] = field(default_factory=set)
    fields: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Values that were read, each with the stems of its field's name."""
    wrote: bool = False


@dataclass(frozen=True)
class _Source:
    """Where a value came from."""

    words: frozenset[str]
    """Stems of the tool's name and of the field's."""
    own_words: frozenset[str]
    """The same without the object in the tool's name: get_ticket says little of the ticket's author."""
    arguments: frozenset[str]
    """Values that the call worked on, normalised."""
    wrote: bool


def check_reports(
    query: Query,
    trajectory: Trajectory,
    failures: Sequence[str],
    reports: Sequence[bool],
    wrote: Sequence[bool],
    hints: Mapping[str, bool],
) -> list[bool]:
    """For each step [T], whether it is a report that holds what was requested, as far as words tell.

    Such a report quotes a value that a tool returned and that answers the request; tools or the user have named all its
    other values. It does not only repeat values that no step has returned since the last report. If there are as many
    reports as goals in the request, each report belongs to one goal. Then a value is no answer if (1) it is named only
    by a branch that a condition excludes, or (2) the goal names another value that was read for this report, or (3) the
    goal names a change and none was made. `hints` holds, for tools whose schemas say so, whether they change something.
    """
    goals = read_goals(query.instruction)
    tellers = {step.call.name for step, tells in zip(trajectory.steps, reports, strict=True) if tells and step.call}
    writers = {verb for name, writes in hints.items() if writes and name not in tellers for verb in _find_verb(name)}
    is_aligned = len(goals) == sum(reports)
    user_text = normalise("\n".join([query.instruction, *_list_user_turns(trajectory)]))
    sources: dict[str, list[_Source]] = defaultdict(list)
    stretch, answers_request, earlier_values = _Stretch(), list[bool](), set[str]()
    for place, step in enumerate(trajectory.steps):
        answers_request.append(False)
        if step.call is None or failures[place]:
            continue
        if not reports[place]:
            _observe(step, wrote[place], sources, stretch)
            continue
        quoted_values = find_values(step.call.arguments)
        observed_values = [value for value in quoted_values if value in sources]
        goal = goals[sum(reports[:place])] if is_aligned else None
        answers = any(_answers(value, sources, stretch, goal, writers) for value in observed_values)
        has_sources = all(value in sources or mentions(user_text, value) for value in quoted_values)
        is_news = not quoted_values <= earlier_values or bool(quoted_values & stretch.values)
        answers_request[-1] = answers and has_sources and is_news
        earlier_values |= quoted_values
        stretch = _Stretch()
    return answers_request


def _observe(step: Step, wrote: bool, sources: dict[str, list[_Source]], stretch: _Stretch) -> None:
    """Note the values that a step returned."""
    assert step.call is not None
    tool = step.call.name.rpartition(".")[2]
    verb, arguments = _find_verb(tool), frozenset(normalise(str(leaf)) for leaf in iterate_leaves(step.call.arguments))
    for key, value in _list_fields(read_payload(step.observation)):
        field_words = stem_words(key)
        sources[value].append(_Source(field_words | stem_words(tool), field_words | verb, arguments, wrote))
        stretch.values.add(value)
        if not wrote:
            stretch.fields.append((value, field_words))
    stretch.wrote |= wrote


def _answers(
    value: str, sources: Mapping[str, Sequence[_Source]], stretch: _Stretch, goal: Goal | None, writers: set[str]
) -> bool:
    """Whether a value that a tool returned may be what is requested."""
    if goal is None:
        return True
    requested_words, excluded_words = collect_requested_words(goal, stretch.values)
    origins = sources[value]
    own_words = frozenset[str]().union(*(source.own_words for source in origins))
    if own_words & excluded_words and not own_words & requested_words:
        return False
    if any(source.words & requested_words for source in origins):
        return True
    if any(source.wrote for source in origins):
        return True
    related_values = [
        other for other, words in stretch.fields if words & requested_words and not LOOKS_LIKE_A_THING.match(other)
    ]
    is_computed = any(other in source.arguments for source in origins for other in related_values)
    return (not related_values or is_computed) and (stretch.wrote or not writers & requested_words)


def _find_verb(name: str) -> frozenset[str]:
    """The stem of the first word of a tool's name."""
    first = re.match(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return stem_words(first[0]) if first else frozenset()


def _list_fields(value: Any) -> Iterator[tuple[str, str]]:
    """The values that a tool returned, normalised, each with the name of its field; without one for values in prose."""
    stack, whole = [("", value)], set(find_values(value))
    while stack:
        key, top = stack.pop()
        if isinstance(top, Mapping):
            stack.extend((str(name), inner) for name, inner in top.items())
        elif isinstance(top, list | tuple):
            stack.extend((key, inner) for inner in top)
        else:
            text = normalise(str(top))
            parts = {text} if text in whole else set(find_values(top))
            yield from ((key, part) for part in parts)


def _list_user_turns(trajectory: Trajectory) -> list[str]:
    return [str(message.get("content") or "") for message in trajectory.messages if message["role"] == "user"]
