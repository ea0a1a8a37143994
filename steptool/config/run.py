"""The whole configuration of a run and how a file becomes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from steptool.config.base import ConfigError, StrictModel, explain_refusal, read_mapping
from steptool.config.data import DataConfig
from steptool.config.evaluation import EvaluationConfig, PromotionConfig
from steptool.config.rewards import RewardConfig
from steptool.config.tools import ToolsConfig
from steptool.config.training import CreditConfig, PolicyConfig, PPOConfig, RolloutConfig, WarmStartConfig


class Config(StrictModel):
    """A complete run."""

    seed: int = 0
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
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(explain_refusal(error, "configs/laptop.yaml")) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Config:
        """As strict as with YAML, whatever the caller asks for: Flyte, which passes JSON, would be lenient."""
        return cls.model_validate(_whole(json.loads(json_data)))


def _whole(value: Any) -> Any:
    """Numbers without a fraction as integers: protobuf, through which a cluster passes them, knows only floats."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def load_config(path: str | Path) -> Config:
    """Read a YAML file. Raises ConfigError naming the file and every field that is wrong."""
    data = read_mapping(path)
    try:
        return Config.model_validate(data)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
