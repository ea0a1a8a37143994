"""The whole configuration of a run and how a file becomes one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from steptool.config.base import ConfigError, StrictModel
from steptool.config.data import DataConfig
from steptool.config.evaluation import EvaluationConfig, PromotionConfig
from steptool.config.refusal import explain_refusal
from steptool.config.rewards import RewardConfig
from steptool.config.tools import ToolsConfig
from steptool.config.training import CreditConfig, PolicyConfig, PPOConfig, RolloutConfig, WarmStartConfig
from steptool.config.yaml_file import override, read_mapping


class Config(StrictModel):
    """A complete run."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Fixes every random draw: tasks, demonstrations, weights, episodes."""
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    tools: ToolsConfig = ToolsConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardConfig = RewardConfig()
    credit: CreditConfig = CreditConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _explain_refusal(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(explain_refusal(error, Config, "configs/laptop.yaml")) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Config:
        """Validate JSON as strictly as YAML. Flyte passes configurations as JSON and asks for leniency."""
        return cls.model_validate(_restore_integers(json.loads(json_data)))


def _restore_integers(value: Any) -> Any:
    """Turn numbers without a fraction into integers: protobuf, by which a cluster passes values, has only floats."""
    if isinstance(value, dict):
        return {k: _restore_integers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_restore_integers(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and replace single fields by overrides such as `ppo.rounds=4`.

    Raises ConfigError, which names the file and every field that is wrong.
    """
    data = override(read_mapping(path), overrides)
    try:
        return Config.model_validate(data)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
