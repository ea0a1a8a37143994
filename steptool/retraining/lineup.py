"""Who takes part in the regular evaluation: the model in service, and the one that everything began with."""

from __future__ import annotations

from steptool.config import Config, EvaluatedPolicy
from steptool.registry import Registry


def line_up(config: Config, registry: Registry) -> Config:
    """The configuration with the policies `champion` and `base` before those that it names itself.

    There is no champion before the first promotion. A base from random weights (`scratch`) is left out.
    """
    champion, base = registry.champion(), config.policy.base
    places = {"champion": registry.model_place(champion.version_id)} if champion else {}
    places |= {} if base == "scratch" else {"base": base}
    policies = [EvaluatedPolicy(name=name, model=place) for name, place in places.items()]
    evaluation = config.evaluation.model_dump() | {"policies": [*policies, *config.evaluation.policies]}
    return config.model_copy(update={"evaluation": type(config.evaluation).model_validate(evaluation)})
