"""Cards in the form that the Hub reads, and uploads to a small server that speaks the Hub's HTTP API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard

from hub_server import Hub
from steptool.artifacts import lineage
from steptool.records import Query, StepReward
from steptool.records.tables import write_records
from steptool.registry import Registry, RegistryError
from steptool.registry.hub import prepare_dataset_upload, prepare_model_upload

RESULTS = {
    "steptool": {"pass_rate": 0.64, "low": 0.59, "high": 0.69, "tasks": 400},
    "warm_start": {"pass_rate": 0.2, "low": 0.16, "high": 0.24, "tasks": 400},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run of two rounds from a model of the Hub."""
    folder = tmp_path / "run"
    model = folder / "model"
    (model / "training").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "training" / "optimizer.safetensors").write_bytes(b"moments")
    (model / ".env").write_text("HF_TOKEN=hf_secret")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("url = https://me:hf_secret@huggingface.co/team/desk")
    for number, stage, note in ((-1, "base", "Qwen/Qwen3-0.6B"), (0, "step_ppo", ""), (1, "step_ppo", "")):
        data = folder / f"trajectories_round_{max(number, 0):02d}.parquet"
        data.write_bytes(b"not read")
        lineage.sign(model, model, stage, [data] if number >= 0 else [], number, note)
        data.unlink()
    (folder / "metrics.json").write_text(json.dumps({"results": RESULTS}))
    write_records(folder / "rewards_round_00.parquet", [StepReward("t", 0, "rules", "4")] * 3, StepReward)
    write_records(folder / "queries.parquet", [], Query)
    return folder


def test_a_model_card_has_what_the_hub_reads(run: Path) -> None:
    upload = prepare_model_upload(run, "team/desk", "apache-2.0", ["team/desk-data"])
    data = ModelCard(upload.card).data
    assert (data.base_model, data.license, data.datasets) == ("Qwen/Qwen3-0.6B", "apache-2.0", ["team/desk-data"])
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("pass_rate", 0.64, "held-out tasks")
    assert "| step_ppo | 1 to 2 | 2 files, named in lineage.json |  |" in upload.card
    assert "| warm_start | 20.0% | 16.0% to 24.0% | 400 |" in upload.card
    assert list(upload.files) == ["config.json", "lineage.json", "model.safetensors"]


def test_an_adapters_card_names_its_library_and_base(run: Path) -> None:
    model = run / "model"
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "sha256:123"}))
    card = ModelCard(prepare_model_upload(run, "team/desk-lora", "mit").card)
    assert (card.data.library_name, card.data.base_model) == ("peft", "Qwen/Qwen3-0.6B")
    assert "digest `sha256:123`" in card.text


def test_a_base_that_is_a_folder_is_not_named_as_a_model_of_the_hub(tmp_path: Path) -> None:
    for note in ("embedded", "/models/base", "../base", "models/own/base"):
        assert lineage.find_hub_base([{"stage": "base", "note": note}]) == ""


def test_a_dataset_card_counts_rows_and_names_the_files_of_each_configuration(run: Path) -> None:
    upload = prepare_dataset_upload(run, "team/desk-data", "cc-by-4.0")
    data = DatasetCard(upload.card).data
    assert data.license == "cc-by-4.0"
    assert data.configs == [
        {"config_name": "queries", "data_files": ["queries/queries.parquet"]},
        {"config_name": "rewards", "data_files": ["rewards/rewards_round_00.parquet"]},
    ]
    assert "| `rewards` | 3 | Scores of their steps. |" in upload.card


def test_a_folder_without_a_model_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no model: expected the folder of a run"):
        prepare_model_upload(tmp_path, "team/x", "")
    with pytest.raises(RegistryError, match=r"no data of a run: expected queries\.parquet"):
        prepare_dataset_upload(tmp_path, "team/x", "")


def test_what_would_be_missing_or_broken_on_the_hub_is_refused_by_name(run: Path) -> None:
    model = run / "model"
    for repo in ("team/desk/x", "team/de sk", "../desk", ""):
        with pytest.raises(RegistryError, match="is no name of a repository"):
            prepare_model_upload(run, repo, "mit")
        with pytest.raises(RegistryError, match="is no name of a repository"):
            prepare_dataset_upload(run, repo, "mit")
    (run / "metrics.json").write_text("{")
    with pytest.raises(RegistryError, match=r"metrics\.json: not JSON"):
        prepare_model_upload(run, "team/desk", "mit")
    (run / "rewards_round_01.parquet").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"rewards_round_01\.parquet: no Parquet file"):
        prepare_dataset_upload(run, "team/desk-data", "mit")
    (model / "model-2.safetensors").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"model-2\.safetensors is empty: the model was not saved whole"):
        prepare_model_upload(run, "team/desk", "mit")
    (model / "model-2.safetensors").unlink()
    (model / "model-2.safetensors").symlink_to("/etc/hostname")
    with pytest.raises(RegistryError, match=r"model-2\.safetensors is a link out of the folder"):
        prepare_model_upload(run, "team/desk", "mit")


def test_a_card_from_elsewhere_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(RegistryError, match=r"README\.md: no card of a model"):
        prepare_model_upload(tmp_path, "team/x", "mit")


def test_figures_beside_a_model_from_elsewhere_are_not_its_results(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "metrics.json").write_text(json.dumps({"results": [0.9]}))
    assert "0.9" not in prepare_model_upload(tmp_path / "model", "team/x", "mit").card


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PUSH = [sys.executable, "-m", "steptool.cli", "push"]


def make_environment(hub: Hub) -> dict[str, str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_key", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return environment


def push(hub: Hub, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = make_environment(hub) | variables
    return subprocess.run([*PUSH, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def test_a_version_of_a_registry_is_pushed_with_its_results(run: Path, tmp_path: Path) -> None:
    (run / "model" / "tokenizer_config.json").write_text("{}")
    version = Registry(tmp_path / "registry").publish(run / "model", {"results": RESULTS})
    folder = tmp_path / "registry" / "versions" / version.version_id
    for place in (folder, folder / "model"):
        card = ModelCard(prepare_model_upload(place, "team/desk", "mit").card)
        (result,) = card.data.eval_results
        assert (result.metric_value, card.data.base_model) == (0.64, "Qwen/Qwen3-0.6B")


def test_a_model_from_elsewhere_keeps_its_own_card(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\nlicense: other\nbase_model: own/base\n---\n\n# Parrot\n")
    process = push(hub, str(tmp_path), "team/parrot", "--licence", "apache-2.0")
    assert process.returncode == 0, process.stderr
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "own/base")
    assert "# Parrot" in card.text and "steptool" not in card.content
    (tmp_path / "README.md").unlink()
    assert "trained by steptool" not in prepare_model_upload(tmp_path, "team/parrot", "").card


def test_push_sends_model_and_card_to_a_private_repository(hub: Hub, run: Path) -> None:
    process = push(hub, str(run), "team/desk", "--licence", "apache-2.0")
    assert process.returncode == 0, process.stderr
    (created,) = hub.created
    assert (created["name"], created["organization"], created["visibility"]) == ("desk", "team", "private")
    assert hub.files.keys() == {"config.json", "lineage.json", "model.safetensors", "README.md"}
    assert hub.files["model.safetensors"] == b"weights"
    assert hub.cards == ["model"]  # the Hub is asked whether the card's metadata are right
    assert ModelCard(hub.files["README.md"].decode()).data.license == "apache-2.0"
    assert hub.keys == {"Bearer hf_key"}
    assert "hf_key" not in process.stdout + process.stderr
    assert f"{hub.url}/team/desk/commit/1" in process.stdout


def test_push_sends_an_adapter_with_its_own_card(hub: Hub, run: Path) -> None:
    model = run / "model"
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "sha256:123"}))
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    process = push(hub, str(run), "team/desk-lora", "--licence", "mit")
    assert process.returncode == 0, process.stderr
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "lineage.json", "README.md"}
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.library_name, card.data.base_model, card.data.license) == ("peft", "Qwen/Qwen3-0.6B", "mit")
    assert "PeftModel.from_pretrained" in card.text


def test_datasets_loads_each_kind_of_what_was_pushed(hub: Hub, run: Path, tmp_path: Path) -> None:
    assert push(hub, str(run), "team/desk-data", "--kind", "dataset").returncode == 0
    for path, content in hub.files.items():
        (tmp_path / "pulled" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / path).write_bytes(content)
    rewards = load_dataset(str(tmp_path / "pulled"), "rewards", cache_dir=str(tmp_path / "cache"))["train"]
    assert rewards["trajectory_id"] == ["t"] * 3 and rewards["annotator"] == ["rules"] * 3


def test_push_sends_data_and_a_dry_run_sends_nothing(hub: Hub, run: Path) -> None:
    arguments = (str(run), "team/desk-data", "--kind", "dataset")
    rehearsed = push(hub, *arguments, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert "rewards/rewards_round_00.parquet" in rehearsed.stdout
    assert "the card names no licence" in rehearsed.stdout
    assert not hub.keys and not hub.files
    assert push(hub, *arguments).returncode == 0
    assert hub.files.keys() == {"queries/queries.parquet", "rewards/rewards_round_00.parquet", "README.md"}
    assert hub.files["rewards/rewards_round_00.parquet"] == (run / "rewards_round_00.parquet").read_bytes()


@pytest.mark.parametrize(
    ("status", "variables", "words"),
    [
        (200, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached (["),
        (200, {"HF_HUB_OFFLINE": "1"}, "huggingface_hub is offline: unset HF_HUB_OFFLINE to push"),
        (401, {"HF_TOKEN": ""}, "refused with status 401: no entry; there is no key: set HF_TOKEN to one that may"),
        (403, {}, "refused with status 403: no entry; its key may not write there: set HF_TOKEN"),
        (400, {}, "refused with status 400: no entry"),
        (201, {}, "does not answer as the Hub does"),
        (429, {}, "refused with status 429: no entry; push again later"),
        (503, {}, "refused with status 503: no entry; push again later"),
        (200, {"HF_TOKEN": "“hf_key”"}, "the key of the Hub has characters that no key has; copy it into HF_TOKEN"),
    ],
)
def test_why_nothing_was_sent_is_one_line(
    run: Path, hub: Hub, tmp_path: Path, status: int, variables: dict[str, str], words: str
) -> None:
    hub.status = status
    failed = push(hub, str(run), "team/desk", **variables, HF_HOME=str(tmp_path))
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1 and line.startswith("steptool: ") and words in line


@pytest.mark.parametrize(
    ("place", "status", "wait", "words"),
    [
        ("/preupload/", 429, "Retry-After: 100000", "status 429: no entry; push again in 100000 seconds"),
        ("/objects/batch", 503, "Retry-After: 100000", "status 503: no entry; push again in 100000 seconds"),
        ("/put/", 429, 'RateLimit: "api";r=0;t=100000', "status 429: no entry; push again in 100000 seconds"),
        ("/put/", 413, "", "refused with status 413: no entry"),
        ("/commit/", 409, "", "refused with status 409: no entry"),
        ("/commit/", 500, "", "refused with status 500: no entry; push again later"),
    ],
)
def test_a_refusal_in_the_middle_ends_at_once_and_nothing_is_committed(
    run: Path, hub: Hub, tmp_path: Path, place: str, status: int, wait: str, words: str
) -> None:
    hub.place, hub.status, hub.wait = place, status, wait
    failed = push(hub, str(run), "team/desk", HF_HOME=str(tmp_path))
    line = failed.stderr.splitlines()[-1]
    assert failed.returncode == 1 and line.startswith("steptool: ") and words in line, failed.stderr
    assert not hub.files


@pytest.mark.parametrize("place", ["/put/", "/commit/"])
@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_push_that_a_signal_ends_commits_nothing_and_the_next_one_completes(
    run: Path, hub: Hub, place: str, number: signal.Signals, code: int, words: str
) -> None:
    hub.hold = place
    command = [*PUSH, str(run), "team/desk"]
    with subprocess.Popen(command, env=make_environment(hub), stderr=subprocess.PIPE, text=True) as process:
        assert hub.held.wait(60)
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert error.splitlines()[-1] == f"steptool: {words}" and not hub.files
    hub.hold = ""
    assert push(hub, str(run), "team/desk").returncode == 0
    assert hub.files["model.safetensors"] == b"weights"


def test_a_connection_that_is_cut_in_the_middle_is_told_as_such(run: Path, hub: Hub) -> None:
    hub.cut = "/commit/"
    failed = push(hub, str(run), "team/desk")
    cause = f"the upload to {hub.url} broke off (RemoteProtocolError: Server disconnected without sending a response.)"
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == f"steptool: {cause}; push again: what has arrived is kept"
    hub.cut = ""
    assert push(hub, str(run), "team/desk").returncode == 0 and hub.files


def test_weights_of_another_model_in_the_repository_are_named_and_nothing_is_sent(run: Path, hub: Hub) -> None:
    hub.present = ["README.md", "model.safetensors", "model-00001-of-00002.safetensors"]
    failed = push(hub, str(run), "team/desk")
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1 and not hub.files
    assert line.startswith("steptool: team/desk holds model-00001-of-00002.safetensors, which would stay there")
    assert push(hub, str(run), "team/desk-data", "--kind", "dataset").returncode == 0


def test_a_silent_hub_is_left_alone_in_time(run: Path, hub: Hub) -> None:
    hub.silence = 5.0
    program = (
        "import pathlib, sys\n"
        "from steptool.registry.hub import prepare_model_upload, push\n"
        "push(prepare_model_upload(pathlib.Path(sys.argv[1]), 'team/desk', 'mit'), private=True, seconds=1.0)\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_key", "HF_HUB_OFFLINE": ""}
    failed = subprocess.run(
        [sys.executable, "-c", program, str(run)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert failed.stderr.splitlines()[-1].startswith(
        f"steptool.registry.hub.HubError: {hub.url} cannot be reached (timed out)"
    )


def test_a_card_that_the_hub_refuses_is_named_and_nothing_is_sent(run: Path, hub: Hub) -> None:
    hub.faults = ['"license" must be one of apache-2.0, mit']
    failed = push(hub, str(run), "team/desk", "--licence", "Apache 2")
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 1
    assert 'refused the card: Invalid metadata in README.md. - "license" must be one of apache-2.0, mit' in line
    assert line.endswith("; see --licence and --dataset") and not hub.files


def test_a_run_whose_notes_are_damaged_is_refused_by_name(run: Path) -> None:
    for file, text in (
        (run / "metrics.json", '{"results": [0.9]}'),
        (run / "model" / "lineage.json", '[{"stage": 1}]'),
    ):
        whole = file.read_text()
        file.write_text(text)
        with pytest.raises(RegistryError, match=r"lineage\.json, metrics\.json or .*take an intact copy of the folder"):
            prepare_model_upload(run, "team/desk", "mit")
        file.write_text(whole)
    with pytest.raises(RegistryError, match="'desk data' is no name of a repository"):
        prepare_model_upload(run, "team/desk", "mit", ["desk data"])


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused_before_anything_is_sent(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    for folder, words in ((tmp_path / "rum", "no such folder"), (tmp_path, "no model: expected the folder of a run")):
        failed = push(hub, str(folder), "team/desk")
        assert failed.returncode == 2 and failed.stderr.startswith(f"steptool: {folder}: {words}")
    assert not hub.keys
