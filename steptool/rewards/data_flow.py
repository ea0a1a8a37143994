"""Contribution by data flow: which calls change something, which values a step returned first, and what used them.

A call that changes something serves the goal by itself if it was informed: the things that it changes were named by the
user or seen before. A call that only reads serves through its values: in the answer, in the arguments of a later step
that contributes, or in the decision to act on a thing that it looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from steptool.chat.messages import reads_only
from steptool.records import FINISH, Query, Step, StepStatus, StopReason, ToolCall, ToolSchema, Trajectory
from steptool.rewards.observations import (
    LOOKS_LIKE_A_THING,
    find_values,
    flatten_text,
    iterate_leaves,
    mentions,
    normalise,
    parse_observation,
    read_payload,
)
from steptool.rewards.reports import check_reports, find_reports, read_goals

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
"""Those verbs that are nouns as well. They count if they begin the name and no noun of reading follows."""
_READ_NOUN = re.compile(r"data|dates?|details?|history|info|information|list|prices?|rates?|stats|status")
"""Nouns by which a name says that it only reads."""
_EFFECT = re.compile(r"\bsuccess(ful)?ly\b|\b(has|have) been (\w+ed|sent|set|made|bought|sold|paid)\b", re.I)
"""How tools report a change: "deleted successfully", "has been cancelled"."""
_REPORT = 200
"""Characters up to which an observation is taken for such a report, and not for data that speaks of changes."""
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def find_writing_tools(tools: Iterable[ToolSchema]) -> dict[str, bool]:
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
    for text in (_find_command(step.call), step.call.name.rpartition(".")[2]):
        reading = _says_reading([word.lower() for word in _WORDS.findall(text)])
        if reading is not None:
            return not reading
    return len(step.observation) <= _REPORT and _EFFECT.search(step.observation) is not None


def _find_command(call: ToolCall) -> str:
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


_NAMES_A_THING = re.compile(r"(^|[^a-z])(ids?|uuids?|e-?mails?|usernames?|recipients?|skus?)$", re.I)
"""Names of arguments that say which thing is meant."""
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_TOKEN = re.compile(r"[\w#][\w@.#-]*\w")
_LIST_MARKS = re.compile(r"[;,\n]")
_LIST_WORDS = 3
"""Most words of a part in an answer that lists values, such as "19; ref_16". A longer part makes it prose."""


@dataclass(frozen=True)
class _Facts:
    """What each of T steps brought."""

    news: Sequence[frozenset[str]]
    """Values that a step returned for the first time; empty for a step that failed or repeats one."""
    informed: Sequence[bool]
    """Whether a step changed something for the first time, and the things in its arguments were known before."""
    wrote: Sequence[bool]
    """Whether a step changed something."""


def find_contributions(query: Query, trajectory: Trajectory, failures: Sequence[str]) -> list[str]:
    """For each step [T], why it contributes; empty for a step that does not.

    A value is new if neither the instruction nor the call itself holds it, and no earlier call with a common argument
    returned it. So the state "pending" of a second order is new, and the price of one product from a second tool is
    not. A state that the instruction names in a condition ("if it is pending") counts as new. Calls that tell the user
    something count as answers (`reports`): they use the values that they quote, and contribute if those were observed
    and answer the request. These contribute nothing: failed steps; repeats of a call that did not fail; every step of
    an episode that the model leaves without an answer; a change that the answer reports with invented values.
    """
    steps, answer = trajectory.steps, trajectory.final_answer or ""
    reports = find_reports(query, trajectory, failures)
    facts = _gather_facts(query, trajectory, failures, reports)
    answers_request = check_reports(query, trajectory, failures, reports, facts.wrote, find_writing_tools(query.tools))
    has_answer = any(answers_request) or trajectory.stop_reason in (StopReason.FINISHED, StopReason.ENDED)
    invents = _invents(answer, query, trajectory)
    sink = answer_text = "\n".join([normalise(answer), flatten_text(parse_observation(answer))])
    acted_on = set[str]()
    uses: list[str] = []
    for place in reversed(range(len(steps))):
        call = steps[place].call
        values = find_values(call.arguments) if call else frozenset[str]()
        if reports[place]:
            use, invents = "told the user what was asked" if answers_request[place] else "", not answers_request[place]
            answer_text = f"{answer_text}\n{flatten_text(call.arguments)}" if use and call else answer_text
            values = frozenset()  # to name a thing to the user is not to act on it
        elif facts.wrote[place]:
            is_told = not invents or _is_reported(facts.news[place], answer_text)
            use = "changed what was asked about" if has_answer and facts.informed[place] and is_told else ""
        else:
            use = _explain_use(facts.news[place], values, sink, acted_on)
        uses.append(use)
        if use:
            sink, acted_on = f"{sink}\n{flatten_text(call.arguments) if call else ''}", acted_on | values
    return uses[::-1]


def _explain_use(news: frozenset[str], values: frozenset[str], sink: str, acted_on: set[str]) -> str:
    """Why a step that only reads contributes; empty if it does not."""
    used_values = sorted(value for value in news if mentions(sink, value))
    if used_values:
        return f"used later: {', '.join(used_values)}"
    looked_at = sorted(values & acted_on)
    return f"looked at before acting: {', '.join(looked_at)}" if news and looked_at else ""


def _is_reported(news: frozenset[str], answer: str) -> bool:
    """Whether an answer holds an id or number that a change returned, such as that of a booking, if it returned one."""
    names = [value for value in news if LOOKS_LIKE_A_THING.match(value) or _NUMBER.fullmatch(value)]
    return not names or any(mentions(answer, name) for name in names)


def _invents(answer: str, query: Query, trajectory: Trajectory) -> bool:
    """Whether an answer names a thing that neither the user nor a call nor a tool has named.

    In an answer that lists values a number counts as well. In prose a number may be counted or computed.
    """
    is_list = all(len(part.split()) <= _LIST_WORDS for part in _LIST_MARKS.split(answer))
    tokens = set(_TOKEN.findall(normalise(answer)))
    names = [t for t in tokens if LOOKS_LIKE_A_THING.match(t) or (is_list and _NUMBER.fullmatch(t))]
    calls = [step.call.arguments for step in trajectory.steps if step.call and step.call.name != FINISH]
    observations = [read_payload(step.observation) for step in trajectory.steps]
    sources = "\n".join([_join_user_text(query, trajectory), flatten_text(calls), flatten_text(observations)])
    return any(not mentions(sources, name) for name in names)


def _gather_facts(query: Query, trajectory: Trajectory, failures: Sequence[str], reports: Sequence[bool]) -> _Facts:
    instruction, hints = normalise(query.instruction), find_writing_tools(query.tools)
    states = {branch.value for goal in read_goals(query.instruction) for branch in goal}
    texts = [_join_user_text(query, trajectory)]
    facts, calls, changes = set[tuple[str, str]](), set[str](), set[tuple[str, str]]()
    news, informed, wrote = [], [], []
    for step, failed, is_report in zip(trajectory.steps, failures, reports, strict=True):
        key, response = _make_key(step), read_payload(step.observation)
        returned_values = find_values(response)
        arguments = {normalise(str(leaf)) for leaf in iterate_leaves(step.call.arguments)} if step.call else set()
        about = {value: set(product(arguments or {""}, [value])) for value in returned_values}
        first = not failed and key not in calls
        fresh = frozenset[str]()
        if first:
            calls.add(key)
            new = (value for value, pairs in about.items() if value not in arguments and not facts & pairs)
            fresh = frozenset(value for value in new if value in states or not mentions(instruction, value))
        wrote.append(not failed and not is_report and changes_state(step, hints))
        change = (key, _DIGITS.sub("0", normalise(step.observation)))
        informed.append(wrote[-1] and change not in changes and _is_informed(step, "\n".join(texts)))
        changes |= {change} if wrote[-1] else set()
        news.append(fresh)
        facts.update(*about.values())
        if not failed and step.call:
            texts.append(flatten_text(response))
            if not wrote[-1]:
                texts.append(flatten_text(step.call.arguments))
    return _Facts(news, informed, wrote)


def _is_informed(step: Step, text: str) -> bool:
    """Whether the things that a call changes were named by the user, returned by a tool, or looked at before."""
    arguments = step.call.arguments if step.call else {}
    return all(mentions(text, thing) for thing in _find_things(arguments))


def _find_things(arguments: Mapping[str, object]) -> set[str]:
    """Values of arguments that name a thing: ids, addresses, and what looks like them; normalised."""
    things = set[str]()
    for name, value in arguments.items():
        for leaf in iterate_leaves(value):
            text = normalise(str(leaf))
            if text and (_NAMES_A_THING.search(name) or LOOKS_LIKE_A_THING.match(text)):
                things.add(text)
    return things


def _join_user_text(query: Query, trajectory: Trajectory) -> str:
    """Everything that the user says in the episode, normalised."""
    turns = [str(m.get("content") or "") for m in trajectory.messages if m["role"] == "user"]
    return normalise("\n".join([query.instruction, *turns]))


def _make_key(step: Step) -> str:
    return json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True, default=str) if step.call else ""
