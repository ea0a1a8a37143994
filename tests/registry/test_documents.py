"""A published version of a model that was really trained, as transformers and vLLM find it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steptool.artifacts import lineage
from steptool.models import actor, adapter, optimizer
from steptool.models.load import make_tiny_model, train_tokenizer
from steptool.registry import Registry

RESULTS = {
    "base": {"pass_rate": 0.5, "low": 0.4004, "high": 0.5996, "tasks": 100},
    "steptool": {"pass_rate": 0.625, "low": 0.5272, "high": 0.7139, "tasks": 100},
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model folder as a round of training leaves it."""
    folder, data = tmp_path / "trained", tmp_path / "trajectories.parquet"
    tokenizer = train_tokenizer(["find the order of mira chen"], vocabulary=300)
    model = make_tiny_model(tokenizer, 64, seed=1, hidden=16, layers=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    actor.save_value_head(actor.ValueHead(16), folder)
    adam = optimizer.make_adamw(model, 1e-3)
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    adam.step()
    optimizer.save_moments(adam, model, folder)
    (folder / adapter.ADAPTER_COPY).mkdir()
    (folder / adapter.ADAPTER_COPY / "adapter_model.safetensors").write_text("adapter")
    data.write_text("rows")
    lineage.sign(folder, None, "step_ppo", [data], round_index=2, rewards={"annotators": ["judge 3"]})
    return folder


def test_transformers_loads_a_champion_as_it_is(tmp_path: Path, trained: Path) -> None:
    registry = Registry(tmp_path / "registry")
    folder = registry.model_place(registry.publish(trained, {}).version_id)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before, ids = AutoModelForCausalLM.from_pretrained(trained), tokenizer("the order", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, before(ids).logits)
    chat = [{"role": "user", "content": "find the order"}]
    rendered = AutoTokenizer.from_pretrained(trained).apply_chat_template(chat, tokenize=False)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == rendered
    assert "find the order" in rendered


def test_what_only_training_reads_lies_in_a_folder_of_its_own(tmp_path: Path, trained: Path) -> None:
    registry = Registry(tmp_path / "registry")
    folder = Path(registry.model_place(registry.publish(trained, {}).version_id))
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]  # vLLM takes all of them
    state = (actor.FILE, optimizer.FILE, f"{adapter.ADAPTER_COPY}/adapter_model.safetensors")
    for name in state:
        assert name.startswith("training/")
        assert (folder / name).read_bytes() == (trained / name).read_bytes()


def test_the_model_card_tells_lineage_results_configuration_and_code(tmp_path: Path, trained: Path) -> None:
    registry = Registry(tmp_path / "registry")
    metadata = {"results": RESULTS, "config": {"seed": 1, "ppo": {"rounds": 3}}, "code_version": "3f2a", "night": 7}
    version = registry.publish(trained, metadata)
    card = (Path(registry.model_place(version.version_id)) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"\n# {version.version_id}\n" in card
    data = lineage.hash_file(tmp_path / "trajectories.parquet")[:12]
    assert f"| step_ppo | 3 | trajectories.parquet {data} | scored by judge 3 |\n" in card
    assert "| base | 50.0% | 40.0% to 60.0% | 100 |\n| steptool | 62.5% | 52.7% to 71.4% | 100 |\n" in card
    # printf '%s' '{"ppo": {"rounds": 3}, "seed": 1}' | sha256sum
    assert "| code | 3f2a |\n| configuration, SHA-256 | 11da9001e50d |\n" in card
    assert version.lineage == lineage.read(trained)
    assert (trained / "README.md").read_text() != card  # the folder that was published stays as it was


def test_a_model_from_elsewhere_keeps_its_card(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish(make_model("hub", **{"README.md": "# From a hub\n"}), {})
    assert (Path(registry.model_place(version.version_id)) / "README.md").read_text() == "# From a hub\n"
    assert version.lineage == []
