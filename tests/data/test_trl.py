"""The trainers of TRL take what is exported, and what they learn from is the conversation."""

import json

import pytest

from steptool.config import PolicyConfig
from steptool.data.export import Form, export
from steptool.data.recordings.recording import RecordedTurn, make_trajectory
from steptool.records import FINISH, Query, Trajectory
from steptool.records.tables import write_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of four queries with tools and arguments of their own, each solved once and failed once."""
    folder = tmp_path_factory.mktemp("data")
    queries, trajectories = [], []
    for number in range(4):
        parameters = {"type": "object", "properties": {f"name{number}": {"type": "string"}}}
        function = {"name": f"tool{number}", "description": "", "parameters": parameters}
        tools = ({"type": "function", "function": function},)
        task = Query(f"q{number}", "train", "replay", f"Question {number}?", tools)
        queries.append(task)
        for solved, answer in ((1.0, "yes"), (0.0, "no")):
            finish = json.dumps({"return_type": "give_answer", "final_answer": answer})
            call = RecordedTurn("", f"tool{number}", json.dumps({f"name{number}": number}), f"said {answer}")
            trajectories.append(
                make_trajectory([call, RecordedTurn("", FINISH, finish, None)], solved, task, int(solved))
            )
    trajectories_path = write_records(folder / "t.parquet", trajectories, Trajectory)
    return trajectories_path, write_records(folder / "q.parquet", queries, Query)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a tiny model from random weights."""
    import torch

    from steptool.models.load import prepare_base

    torch.set_num_threads(1)
    texts = ["Question 0? tool name said yes no give_answer final_answer Finish"] * 20
    return prepare_base(PolicyConfig(base="scratch"), texts, 0, tmp_path_factory.mktemp("model"))


def settings(folder):
    return {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "bf16": False,
        "report_to": "none", "max_length": 2048, "disable_tqdm": True, "save_strategy": "no", "seed": 0,
    }  # fmt: skip


def dataset(file, tmp_path):
    from datasets import Dataset

    return Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))


def test_sft_trainer_takes_the_data(data, model, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from steptool.models.load import load_model, load_tokenizer

    rows = dataset(export(*data, Form.SFT, tmp_path).path, tmp_path)
    tokenizer, args = load_tokenizer(model), SFTConfig(**settings(tmp_path))
    trainer = SFTTrainer(load_model(model), args, train_dataset=rows, processing_class=tokenizer)
    texts = [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]
    for number, text in enumerate(texts):
        assert f'"name{number}": {number}' in text and "said yes" in text and f"Question {number}?" in text
        assert f"tool{(number + 1) % 4}" not in text and "null" not in text  # no traces of the other rows' tools
    assert trainer.train().training_loss > 0


def test_dpo_trainer_takes_the_data(data, model, tmp_path):
    from trl import DPOConfig, DPOTrainer

    from steptool.models.load import load_model, load_tokenizer

    rows = dataset(export(*data, Form.PREFERENCE, tmp_path).path, tmp_path)
    tokenizer, args = load_tokenizer(model), DPOConfig(**settings(tmp_path))
    trainer = DPOTrainer(load_model(model), args=args, train_dataset=rows, processing_class=tokenizer)
    for number, row in enumerate(trainer.train_dataset):
        prompt, preferred, rejected = (tokenizer.decode(row[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected"))
        assert f"Question {number}?" in prompt and f"tool{number}" in prompt
        assert "said yes" in preferred and "said no" in rejected
        assert f'"name{number}": {number}' in preferred and "null" not in preferred
    assert trainer.train().training_loss > 0
