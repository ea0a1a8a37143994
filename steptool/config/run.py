"""The whole configuration of a run, read from a YAML file and the overrides of a command line, and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from steptool.config.base import ConfigError, StrictModel, explain_refusal
from steptool.config.tasks import DataConfig, EvaluationConfig, PromotionConfig, ToolsConfig
from steptool.config.training import (
    CreditConfig,
    PolicyConfig,
    PPOConfig,
    RewardConfig,
    RolloutConfig,
    RoundsConfig,
    WarmStartConfig,
    check_learning,
)

_LARGEST = 100_000
"""Largest number of values in a file with its aliases written out. Aliases let 500 bytes stand for billions of
values."""
_LARGEST_FILE = 1 << 18
"""Largest size of a file in bytes. All fields with their documentation take a tenth of it."""
_EXCERPT = 40
"""Largest number of characters of a value in an error."""
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")


class _Loader(yaml.SafeLoader):
    """A loader that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key that is given twice.

    PyYAML alone reads 1e-3 as text, and takes the last value of a key that is given twice.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping that begins here. Raises ConstructorError for a key that is given twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                earlier_key, earlier = first.setdefault(key.value, (key, value))
                if earlier_key is not key:
                    raise yaml.constructor.ConstructorError(problem=_describe_repeat(earlier_key, earlier, key, value))
        return node


def _describe_repeat(first_key: yaml.Node, first: yaml.Node, key: yaml.Node, value: yaml.Node) -> str:
    places = (f"in line {k.start_mark.line + 1} with {_cut_excerpt(v)}" for k, v in ((first_key, first), (key, value)))
    return f"'{key.value}' is given twice, {' and '.join(places)}; keep one of them"


def _cut_excerpt(node: yaml.Node) -> str:
    """The value of a node in a few characters."""
    if isinstance(node, yaml.ScalarNode):
        text = str(node.value)
        return f"'{text[:_EXCERPT]}{'...' if len(text) > _EXCERPT else ''}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The sections of a YAML file. Raises ConfigError, which names the file, for one without sections."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file{_suggest_file(path)}")
    try:
        data = parse_yaml(_read_text(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {_name_kind(data)}")
    return data


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ConfigError(f"not a configuration: it has more than {_LARGEST_FILE >> 10} KiB")
    return content.decode("utf-8")


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ConfigError, in one line, for a text that is not YAML, endless or too large."""
    try:
        value = yaml.load(text, _Loader)
        size = _count_values(value, {})
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"not YAML: {_describe(error)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from None
    except (LookupError, AttributeError) as error:  # PyYAML's own, as for `!!bool maybe`
        raise ConfigError(f"not YAML: a value does not fit its tag ({type(error).__name__}: {error})") from None
    except RecursionError:
        raise ConfigError("not a configuration: its values are nested without an end") from None
    if size > _LARGEST:
        raise ConfigError(f"not a configuration: its aliases stand for {size:,} values")
    return value


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The sections with single fields replaced, each as in `ppo.rounds=4`; the value is YAML.

    Raises ConfigError for an override of another form. Whether the field exists and takes the value is checked with
    the rest of the configuration.
    """
    result = dict(data)
    for text in overrides:
        field, equals, value = text.partition("=")
        names = field.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"'{text}' sets no field: write it as section.field=value, such as ppo.rounds=4")
        section = result
        for name in names[:-1]:
            inner = section.get(name)
            section[name] = dict(inner) if isinstance(inner, dict) else {}
            section = section[name]
        try:
            section[names[-1]] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"'{' '.join(text.split())}': {error}") from None
    return result


def _suggest_file(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    close = get_close_matches(path.name, names, n=1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return "" if folder.is_dir() else f", and no folder {folder}"


def _describe(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{error.problem or error.context}{place}"


def _name_kind(value: Any) -> str:
    return {list: "a list", str: "text", int: "a number", float: "a number"}.get(type(value), type(value).__name__)


def _count_values(value: Any, sizes: dict[int, int]) -> int:
    """How many values this is when every alias is written out; each shared part is counted once and remembered.

    Raises RecursionError for a value that contains itself.
    """
    if not isinstance(value, (dict, list)):
        return 1
    if sizes.setdefault(id(value), -1) == -1:
        sizes[id(value)] = -2
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_count_values(item, sizes) for item in inner)
    elif sizes[id(value)] == -2:
        raise RecursionError
    return sizes[id(value)]


class TrackingConfig(StrictModel):
    """Trackers of experiments, which receive the figures of every stage (docs/tracking.md)."""

    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default_factory=list)
    """Which trackers: tensorboard, wandb, mlflow, trackio; several may run at once."""
    project: Annotated[str, Field(min_length=1)] = "steptool"
    """The project of wandb and trackio, and the experiment of mlflow."""
    run: str = ""
    """The name of the run at the trackers. Empty: the name of Flyte's execution on a cluster, a new name on this
    machine."""
    folder: str = "runs/tracking"
    """Where TensorBoard and trackers without a server write. TensorBoard takes a url as well."""
    online: bool = False
    """Whether wandb sends its data at once. Otherwise `wandb sync` sends them later. Its key comes from
    WANDB_API_KEY."""
    mlflow_url: str = ""
    """The address of an MLflow server, such as http://mlflow:5000. Empty: MLflow writes to a folder."""


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
    rounds: RoundsConfig = RoundsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _explain_refusal(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        try:
            config = handler(data)
        except ValidationError as error:
            raise ConfigError(explain_refusal(error, Config, "configs/laptop.yaml")) from None
        check_learning(config.rollout, config.rewards, config.credit, config.ppo)
        return config

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
