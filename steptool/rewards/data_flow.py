"""Contribution by data flow: which values a step returned for the first time, and what they served in the end.

A call that changes something serves the goal by itself if it was informed: the things that it changes were named by the
user or seen before. A call that only reads serves through its values: in the answer, in the arguments of a later step
that contributes, or in the decision to act on a thing that it looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from steptool.records import Query, Step, StopReason, Trajectory
from steptool.rewards.observations import leaves, mentions, normalise, parse, payload, text_of, values
from steptool.rewards.writes import changes_state, tools_that_write

_NAMES_A_THING = re.compile(r"(^|[^a-z])(ids?|uuids?|e-?mails?|usernames?|recipients?|skus?)$", re.I)
"""Names of arguments that say which thing is meant."""
_LOOKS_LIKE_A_THING = re.compile(r"^\S*@\S+$|^(?=\S*\d)(?=\S*[a-z])[\w#]+[_#-][\w-]+$", re.I)
"""Values that look like the name of a thing, such as addresses and ord_07. A date does not."""


@dataclass(frozen=True)
class _Facts:
    """What each of T steps brought."""

    news: Sequence[frozenset[str]]
    """Values that a step returned for the first time; empty for a step that failed or repeats one."""
    informed: Sequence[bool]
    """Whether a step changed something for the first time, and the things in its arguments were known before."""
    wrote: Sequence[bool]
    """Whether a step changed something."""


def contributions(query: Query, trajectory: Trajectory, failures: Sequence[str]) -> list[str]:
    """For each step [T], what it was good for; empty for a step that does not contribute.

    A value is new where neither the instruction nor the call itself holds it and no earlier call with an argument in
    common returned it: that a second order is "pending" too is news, the price of one product from two tools is not.
    Steps that failed contribute nothing, nor do repeats of a call that was already made and did not fail, nor anything
    in an episode that the model leaves without an answer.
    """
    steps, answer = trajectory.steps, trajectory.final_answer or ""
    facts = _facts(query, trajectory, failures)
    answered = trajectory.stop_reason in (StopReason.FINISHED, StopReason.ENDED)
    sink = "\n".join([normalise(answer), text_of(parse(answer))])
    acted_on = set[str]()
    uses: list[str] = []
    for place in reversed(range(len(steps))):
        call = steps[place].call
        things = values(call.arguments) if call else frozenset[str]()
        if facts.wrote[place]:
            use = "changed what was asked about" if answered and facts.informed[place] else ""
        else:
            use = _use(facts.news[place], things, sink, acted_on)
        uses.append(use)
        if use:
            sink, acted_on = f"{sink}\n{text_of(call.arguments) if call else ''}", acted_on | things
    return uses[::-1]


def _use(news: frozenset[str], things: frozenset[str], sink: str, acted_on: set[str]) -> str:
    """What a step that only reads was good for."""
    reached = sorted(value for value in news if mentions(sink, value))
    if reached:
        return f"used later: {', '.join(reached)}"
    looked_at = sorted(things & acted_on)
    return f"looked at before acting: {', '.join(looked_at)}" if news and looked_at else ""


def _facts(query: Query, trajectory: Trajectory, failures: Sequence[str]) -> _Facts:
    instruction, hints = normalise(query.instruction), tools_that_write(query.tools)
    seen = [_user_text(query, trajectory)]
    known, calls = set[tuple[str, str]](), set[str]()
    news, informed, wrote = [], [], []
    for step, failed in zip(trajectory.steps, failures, strict=True):
        key, response = _key(step), payload(step.observation)
        returned = values(response)
        arguments = {normalise(str(leaf)) for leaf in leaves(step.call.arguments)} if step.call else set()
        about = {value: set(product(arguments or {""}, [value])) for value in returned}
        first = not failed and key not in calls
        fresh = frozenset[str]()
        if first:
            calls.add(key)
            new = (value for value, pairs in about.items() if value not in arguments and not known & pairs)
            fresh = frozenset(value for value in new if not mentions(instruction, value))
        wrote.append(not failed and changes_state(step, hints))
        informed.append(first and wrote[-1] and _is_informed(step, "\n".join(seen)))
        news.append(fresh)
        known.update(*about.values())
        if not failed and step.call:
            seen.append(text_of(response))
            if not wrote[-1]:
                seen.append(text_of(step.call.arguments))
    return _Facts(news, informed, wrote)


def _is_informed(step: Step, seen: str) -> bool:
    """Whether the things that a call changes were named by the user, returned by a tool, or looked at before."""
    arguments = step.call.arguments if step.call else {}
    return all(mentions(seen, thing) for thing in _things_in(arguments))


def _things_in(arguments: Mapping[str, object]) -> set[str]:
    """Values of arguments that name a thing: ids, addresses, and what looks like them; normalised."""
    things = set[str]()
    for name, value in arguments.items():
        for leaf in leaves(value):
            text = normalise(str(leaf))
            if text and (_NAMES_A_THING.search(name) or _LOOKS_LIKE_A_THING.match(text)):
                things.add(text)
    return things


def _user_text(query: Query, trajectory: Trajectory) -> str:
    """Everything that the user says in the episode, normalised."""
    turns = [str(m.get("content") or "") for m in trajectory.messages if m["role"] == "user"]
    return normalise("\n".join([query.instruction, *turns]))


def _key(step: Step) -> str:
    return json.dumps([step.call.name, dict(step.call.arguments)], sort_keys=True, default=str) if step.call else ""
