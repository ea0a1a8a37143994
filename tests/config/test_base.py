"""YAML files and overrides become plain values, and what cannot is refused in one line that names the file."""

from pathlib import Path

import pytest

from steptool.config.base import ConfigError
from steptool.config.run import override, parse_yaml, read_mapping

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as excinfo:
        read_mapping(path)
    assert "\n" not in str(excinfo.value)
    return str(excinfo.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.5E+2", 250.0),
        ("4", 4),
        ("-0.5", -0.5),
        ("1.", 1.0),
        ("1e", "1e"),
        ("1-2", "1-2"),
        ("no", False),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value and type(parsed) is type(value)


def test_a_mistyped_path_is_refused_with_the_file_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "laptop.yaml").write_text("seed: 1\n")
    assert refusal(tmp_path / "laptp.yaml") == (
        f"{tmp_path}/laptp.yaml: no such file; did you mean {tmp_path}/laptop.yaml?"
    )
    assert (
        refusal(tmp_path / "none" / "a.yaml") == f"{tmp_path}/none/a.yaml: no such file, and no folder {tmp_path}/none"
    )


def test_what_is_no_yaml_is_refused_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  source: desk\n  paths: [a, b\nseed: 1\n")
    assert refusal(path) == f"{path}: not YAML: expected ',' or ']', but got ':' in line 4, column 5"
    path.write_bytes(b"seed: \xff\n")
    assert refusal(path) == f"{path}: not a text file in UTF-8 (invalid start byte at byte 6)"
    path.write_text("- seed\n")
    assert refusal(path) == f"{path}: expected a mapping of sections, got a list"


def test_a_file_that_stands_for_a_billion_values_or_for_itself_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMB)
    assert path.stat().st_size < 600
    assert "its aliases stand for 1," in refusal(path) and refusal(path).endswith(" values")
    path.write_text("data: &a\n  paths: *a\n")
    assert refusal(path).endswith("its values are nested without an end")
    path.write_text("data: " + "[" * 5000)
    assert refusal(path).endswith("its values are nested without an end")
    path.write_text("base: &base {seed: 1}\nother: *base\n")
    assert read_mapping(path) == {"base": {"seed": 1}, "other": {"seed": 1}}  # aliases as such are fine


def test_overrides_replace_single_fields_and_leave_the_rest() -> None:
    data = {"ppo": {"rounds": 2, "epochs": 3}, "seed": 0}
    result = override(data, ["ppo.rounds=4", "policy.base=a/b=c", "seed = 7", "data.paths=[x, y]", "ppo.clip=1e-1"])
    assert result == {
        "ppo": {"rounds": 4, "epochs": 3, "clip": 0.1},
        "seed": 7,
        "policy": {"base": "a/b=c"},
        "data": {"paths": ["x", "y"]},
    }
    assert data == {"ppo": {"rounds": 2, "epochs": 3}, "seed": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo.rounds", "'ppo.rounds' sets no field: write it as section.field=value, such as ppo.rounds=4"),
        ("=4", "'=4' sets no field"),
        ("ppo..rounds=4", "'ppo..rounds=4' sets no field"),
        ("data.paths=[a", "'data.paths=[a': not YAML: expected ',' or ']'"),
    ],
)
def test_an_override_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        override({}, [text])
    assert str(excinfo.value).startswith(message)


def test_a_file_that_is_too_large_for_a_configuration_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\n" + "# " + "x" * (1 << 18))
    assert refusal(path).endswith("not a configuration: it has more than 256 KiB")
    path.write_text("seed: 1\n")
    assert read_mapping(path) == {"seed": 1}
