"""A configuration holds known fields of their type and nothing else; a refusal says what was probably meant."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from steptool.config import Config, ConfigError, load_config
from steptool.config.base import StrictModel, find_section


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as excinfo:
        load_config(path)
    header = f"{path}: the configuration was refused: "
    assert str(excinfo.value).startswith(header)
    return "\n".join(line.strip() for line in str(excinfo.value).removeprefix(header).splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {round: 3}", "'ppo.round': remove it, or see configs/laptop.yaml for all fields; did you mean"),
        ("plicy: {base: x}", "for all fields; did you mean 'policy'?"),
        ("rewards: {judge: {endpoint: {base-url: x}}}", "all fields; did you mean 'base_url'?"),
        ("evaluation: {policies: [{name: a, model: m, kin: model}]}", "all fields; did you mean 'kind'?"),
        ("ppo: {zzz: 3}", "unknown field 'ppo.zzz': remove it, or see configs/laptop.yaml for all fields"),
        ("rewards: {annotator: rule}", "got 'rule' (str); did you mean 'rules'?"),
        ("ppo: {rounds: many}", "field 'ppo.rounds': input should be a valid integer, got 'many' (str)"),
        ("ppo: {rounds: 2.5}", "field 'ppo.rounds': input should be a valid integer, got 2.5 (float)"),
        ("ppo: {rounds: true}", "field 'ppo.rounds': input should be a valid integer, got True (bool)"),
        ("ppo: {learning_rate: .inf}", "field 'ppo.learning_rate': input should be a finite number, got inf (float)"),
        ("ppo: {kl_coef: .nan}", "field 'ppo.kl_coef': input should be a finite number, got nan (float)"),
        ("seed: 4294967296", "field 'seed': input should be less than 4294967296, got 4294967296 (int)"),
        ("rollout: {temperature: 1.0e-5}", "field 'rollout.temperature': input should be greater than or equal"),
        ("seed: -1", "field 'seed': input should be greater than or equal to 0, got -1 (int)"),
        ("ppo: {rounds: 9223372036854775808}", "field 'ppo.rounds': input should be less than 2147483648"),
        (
            "data: {source: recorded, paths: [logs], recorded_answers: [logs/may]}",
            "expected other recordings in recorded_answers than in paths, which the source 'recorded' reads already; "
            "'logs/may' lies in 'logs'",
        ),
        ("data: {paths: [logs, ./logs/]}", "field 'data.paths': 'logs' is named twice: its records would"),
        (
            "data: {environment: function}",
            "field 'data.environment': expected one of bfcl, desk, functions, mcp, nemo_gym, openenv, replay, "
            "toolbench, verifiers, or package.module:Class for your own, got 'function'; did you mean 'functions'?",
        ),
        ("data: {paths: [logs/a, logs]}", "field 'data.paths': 'logs/a' lies in 'logs'"),
        ("data: {paths: ['s3://logs', 's3://logs/a/']}", "field 'data.paths': 's3://logs/a/' lies in 's3://logs'"),
        ("evaluation: {verdicts: [judged, judged/]}", "field 'evaluation.verdicts': 'judged' is named"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rollout: {episodes: 95, samples_per_query: 4}",
            "rollout.episodes: 95 is not a multiple of samples_per_query",
        ),
        ("ppo: {algorithm: eto}", "eto compares tries at a query: set rollout.samples_per_query to 2 or more"),
        ("ppo: {algorithm: eto, sharding: fsdp}", "eto trains whole models through TRL: set ppo.sharding: ddp"),
        ("credit: {value: group_mean}", "credit.value: group_mean compares tries at a query: set rollout.samples_per"),
        ("ppo: {algorithm: grpo}", "grpo scales by group: set credit.whiten: false"),
        ("ppo: {algorithm: archer}\ncredit: {level: token}", "archer needs credit.level: step"),
        ("ppo: {algorithm: archer}\ncredit: {value: group_mean}", "credit.value: group_mean is for step_ppo only"),
        ("ppo: {algorithm: rft}\ncredit: {value_lam: 1.0}", "rft has no value head for credit.value_lam"),
        ("credit: {value_lam: 1.0, value: group_mean}", "credit.value_lam is for credit.value: head only"),
        ("credit: {state: observation}", "credit.state is for gigpo and value: group_mean only"),
        ("credit: {state_weight: 0.5}", "credit.state_weight is for gigpo only"),
        ("credit: {group_scale: false}", "credit.group_scale is for grpo, gigpo only"),
        ("credit: {level: token}\nppo: {ratio: step}", "ppo.ratio: step needs credit.level: step"),
        ("credit: {level: token, value: group_mean}", "value: group_mean compares steps, so it needs level: step"),
        ("credit: {level: token, whiten_by: step}", "counts one advantage for each step, so it needs level: step"),
        ("credit: {whiten: false, whiten_by: step}", "whiten_by: step needs whiten: true"),
        ("ppo: {reward: final}\nrewards: {weights: calibrated}", "rewards.weights: calibrated needs rewards of steps"),
        ("ppo: {rft_temperature: 1.0}", "ppo.rft_temperature is for rft only"),
        ("ppo: {algorithm: rft, entropy_coef: 0.1}", "rft has no advantages for ppo.entropy_coef"),
    ],
)
def test_settings_that_mean_nothing_together_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nppo:\n  rounds: 4\n  epochs: 2\n  rounds: 24\n",
            "not YAML: 'rounds' is given twice, in line 3 with '4' and in line 5 with '24'; keep one of them",
        ),
        (
            "ppo: {rounds: 4}\ndata: {}\nppo:\n  epochs: 2",
            "'ppo' is given twice, in line 1 with a section and in line 3",
        ),
        ("data: {paths: [a], paths: [b]}", "'paths' is given twice, in line 1 with a list and in line 1 with a list"),
        ("ppo: {'rounds': 4, rounds: 5}", "'rounds' is given twice"),
        (
            f"data: {{environment: {'x' * 50}, environment: b}}",
            f"in line 1 with '{'x' * 40}...' and in line 1 with 'b'",
        ),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_both_places(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as excinfo:
        load_config(path)
    assert str(excinfo.value).startswith(f"{path}: not YAML: '") and message in str(excinfo.value)


def test_a_key_of_a_merged_section_may_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ppo: &ppo {rounds: 4, epochs: 2}\n")
    assert load_config(path, ["ppo={<<: {epochs: 5, rounds: 3}, rounds: 7}"]).ppo.rounds == 7
    with pytest.raises(ConfigError, match=r"'ppo=\{rounds: 4, rounds: 5\}': not YAML: 'rounds' is given twice"):
        load_config(path, ["ppo={rounds: 4, rounds: 5}"])


def test_every_wrong_field_has_its_line_and_a_long_value_is_cut(tmp_path: Path) -> None:
    lines = refusal(tmp_path, f"seed: one\nppo: {{rounds: {'x' * 5000}}}\n").splitlines()
    assert [line.split("'")[1] for line in lines] == ["seed", "ppo.rounds"]
    assert all(len(line) < 350 for line in lines)


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("ppo: {rounds: 2}\n")
    config = load_config(path, ["ppo.rounds=4", "policy.base=some/model", "ppo.learning_rate=1e-5"])
    assert (config.ppo.rounds, config.policy.base, config.ppo.learning_rate) == (4, "some/model", 1e-5)
    with pytest.raises(ConfigError, match=r"unknown field 'ppo\.epoch': .*; did you mean 'epochs'\?"):
        load_config(path, ["ppo.epoch=4"])
    with pytest.raises(ConfigError, match=r"field 'ppo\.rounds'.*got 'four'"):
        load_config(path, ["ppo.rounds=four"])


def test_json_is_as_strict_as_yaml_and_takes_whole_floats_for_integers() -> None:
    config = Config.model_validate({"ppo": {"rounds": 4}, "rollout": {"temperature": 1}})
    passed = json.dumps(config.model_dump(mode="json"), default=str).replace('"rounds": 4', '"rounds": 4.0')
    assert '"rounds": 4.0' in passed
    assert Config.model_validate_json(passed, strict=False) == config
    with pytest.raises(ConfigError, match=r"ppo\.rounds"):
        Config.model_validate_json('{"ppo": {"rounds": "4"}}', strict=False)


def test_the_schema_that_is_registered_with_every_task_has_no_descriptions() -> None:
    text = json.dumps(Config.model_json_schema())
    assert '"description"' not in text and len(text) < 24_000


def test_flyte_passes_a_configuration_without_pickle() -> None:
    from flytekit.core.type_engine import TypeEngine

    kinds, waiting = [], [TypeEngine.to_literal_type(Config)]
    while waiting:
        kind = waiting.pop()
        kinds.append(kind)
        waiting += (kind.structure.dataclass_type or {}).values() if kind.structure else []
        waiting += [inner for inner in (kind.collection_type, kind.map_value_type) if inner]
    assert len(kinds) > 50
    assert not any(kind.blob for kind in kinds)  # what flytekit cannot express becomes a file of pickle


def test_of_many_faults_the_first_twenty_are_explained(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "\n".join(f"field_{number}: 1" for number in range(25))).splitlines()
    assert len(lines) == 21
    assert (lines[0].split(":")[0], lines[-1]) == ("unknown field 'field_0'", "and 5 more")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed: !!bool maybe", r"not YAML: a value does not fit its tag \(KeyError: 'maybe'\)"),
        ("seed: !!timestamp soon", r"not YAML: a value does not fit its tag \(AttributeError: "),
        ("ppo:", r"field 'ppo': expected a section of fields; a section without any is left out, got None"),
        ("ppo: 3", r"field 'ppo': expected a section of fields; .*, got 3 \(int\)"),
    ],
)
def test_a_value_that_has_no_meaning_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as excinfo:
        load_config(tmp_path / "c.yaml")
    assert len(str(excinfo.value).splitlines()) == 1


def test_an_override_of_several_lines_is_refused_in_one(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"^'ppo.rounds=1 seed: 3': not YAML: [^\n]+$"):
        load_config(tmp_path / "c.yaml", ["ppo.rounds=1\nseed: 3"])


UNLIMITED = ("ppo.clip_high", "ppo.clip_value", "ppo.importance_cap", "ppo.max_mismatch", "ppo.max_grad_norm")
"""A limit that no number reaches is a limit that is turned off."""


def list_numbers(model: type[StrictModel], before: str = "") -> Iterator[tuple[str, type]]:
    """The fields that hold a number, in all sections, with their type."""
    for name, field in model.model_fields.items():
        if field.annotation in (int, float):
            yield f"{before}{name}", field.annotation
        elif (section := find_section(field.annotation)) and name != "policies":
            yield from list_numbers(section, f"{before}{name}.")


def refuses(field: str, value: object) -> bool:
    """Whether a value is refused for this field, by its name."""
    config: object = value
    for name in reversed(field.split(".")):
        config = {name: config}
    try:
        Config.model_validate(config)
    except ConfigError as error:
        return str(error).startswith(f"the configuration was refused: field '{field}': ")
    return False


@pytest.mark.parametrize(("field", "kind"), list_numbers(Config))
def test_a_number_that_means_nothing_is_refused_by_the_name_of_its_field(field: str, kind: type) -> None:
    wrong: list[object] = [float("nan"), float("inf"), -float("inf"), -1.5, -1e300, True, "1"]
    wrong += [1.5, -(2**63), 2**32] if kind is int else [] if field in UNLIMITED else [1e7, 1e300]
    assert [value for value in wrong if not refuses(field, value)] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "credit: {value_lam: -0.5}",
            "field 'credit.value_lam': expected a number from 0 to 1, or -1 for the value of",
        ),
        (
            "ppo: {algorithm: rft, rft_temperature: 1e-3}",
            "field 'ppo.rft_temperature': expected 0, or a temperature of",
        ),
        ("ppo: {clip: 20.0}", "field 'ppo.clip': input should be less than or equal to 1, got 20.0 (float)"),
        ("ppo: {learning_rate: 5.0}", "field 'ppo.learning_rate': input should be less than or equal to 1, got 5.0"),
        ("evaluation: {bootstrap: 1}", "field 'evaluation.bootstrap': input should be greater than or equal to 40"),
        ("tools: {timeout: 1e300}", "field 'tools.timeout': input should be less than or equal to 1000000, got 1e+300"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_the_range(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)
