"""The configuration of a run: one YAML file, one tree of checked fields."""

from steptool.config.base import ConfigError
from steptool.config.run import Config, load_config
from steptool.config.tasks import (
    DataConfig,
    EndpointConfig,
    EvaluatedPolicy,
    EvaluationConfig,
    JudgeConfig,
    McpConfig,
    PromotionConfig,
    SearchConfig,
    ToolBenchConfig,
    ToolsConfig,
)
from steptool.config.training import (
    AuditConfig,
    CreditConfig,
    FinishMode,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
    RoundsConfig,
    WarmStartConfig,
)

__all__ = [
    "AuditConfig",
    "Config",
    "ConfigError",
    "CreditConfig",
    "DataConfig",
    "EndpointConfig",
    "EvaluatedPolicy",
    "EvaluationConfig",
    "FinishMode",
    "JudgeConfig",
    "McpConfig",
    "PPOConfig",
    "PolicyConfig",
    "PromotionConfig",
    "RewardConfig",
    "RolloutConfig",
    "RoundsConfig",
    "SearchConfig",
    "ToolBenchConfig",
    "ToolsConfig",
    "WarmStartConfig",
    "load_config",
]
