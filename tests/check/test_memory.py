"""The estimate of memory against what torch and peft really hold, for models that fit into a test."""

from typing import Any, Literal

import pytest
import torch
from transformers import (
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steptool.check.memory import GIB, Machine, StageMemory, check_memory, estimate_memory, read_shape
from steptool.check.plan import read_base_shape
from steptool.config import Config, ConfigError
from steptool.models.adapter import add_adapter
from steptool.models.load import EMBEDDED, load_model
from steptool.models.optimizer import make_adamw

SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 4,
}  # fmt: skip
KINDS = [(Qwen3Config, Qwen3ForCausalLM), (LlamaConfig, LlamaForCausalLM)]


def stage(name: str, stages: list[StageMemory]) -> StageMemory:
    return next(stage for stage in stages if stage.stage == name)


def kept_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes that torch keeps of a forward pass for the backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = model.base_model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False).last_hidden_state
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("config_class", "model_class"), KINDS)
def test_activations_are_those_that_torch_keeps(config_class: Any, model_class: Any, dtype: str) -> None:
    model_config, tokens = config_class(**SIZES), 512
    config = Config.model_validate({"policy": {"dtype": dtype}, "ppo": {"tokens_per_pass": tokens}})
    expected = kept_bytes(model_class(model_config).to(getattr(torch, dtype)), tokens)
    logits = 2 * tokens * 256 * 4
    activations = stage("ppo", estimate_memory(read_shape(model_config, dtype), config)).activations - logits
    assert 0.9 < activations / expected < 1.25


def test_the_shape_of_the_embedded_model_is_that_of_its_weights() -> None:
    config = Config()
    shape = read_base_shape(config.policy)
    model = load_model(EMBEDDED)
    assert shape is not None and shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.bytes_per_weight == 4
    stages = estimate_memory(shape, config)
    assert stage("ppo", stages).weights == shape.parameters * 4
    assert stage("ppo", stages).optimizer == shape.parameters * 12  # a gradient and two moments in float32


def test_rounds_together_take_what_the_larger_turn_takes() -> None:
    """Sampling by an adapter adds it to a copy of the layers; the embedded model is small against its cache."""
    shape = read_base_shape(Config().policy)
    assert shape is not None
    model = shape.parameters * 4
    for rank, copied in ((0, 0), (4, model)):
        trees = [
            {"policy": {"lora_rank": rank}, "rollout": {"episodes": 96}, "rounds": {"placement": placement}}
            for placement in ("pods", "together")
        ]
        apart, together = (estimate_memory(shape, Config.model_validate(tree)) for tree in trees)
        assert [s.stage for s in together] == ["prepare", "warm_start", "rounds_together", "evaluate"]
        playing, training = stage("rollout", apart), stage("ppo", apart)
        assert playing.cache > 0
        expected = max(playing.total + copied, training.total)
        assert stage("rounds_together", together).total == pytest.approx(expected)


def test_vllm_keeps_its_weights_in_main_memory_while_the_process_trains() -> None:
    shape = read_base_shape(Config().policy)
    assert shape is not None
    settings: dict[str, Any] = {"rounds": {"placement": "together"}, "ppo": {"micro_batch_size": 64}}
    for has_gpu, of_weight in ((False, 4), (True, 0)):
        ours, vllm = (
            estimate_memory(
                shape, Config.model_validate(settings | {"rollout": {"episodes": 1, "engine": engine}}), has_gpu=has_gpu
            )
            for engine in ("transformers", "vllm")
        )
        more = stage("rounds_together", vllm).total - stage("rounds_together", ours).total
        assert more == pytest.approx(shape.parameters * of_weight)


def test_lora_trains_as_many_weights_as_peft_makes() -> None:
    config = Config.model_validate({"policy": {"lora_rank": 4}})
    adapted = add_adapter(load_model(EMBEDDED), config.policy, 0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    shape = read_base_shape(config.policy)
    assert shape is not None
    assert stage("ppo", estimate_memory(shape, config)).optimizer == trained * 12


def test_a_model_of_any_kind_has_a_shape() -> None:
    """The configurations of some kinds have other names for the sizes, or lack one."""
    gpt2 = read_shape(GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2), "auto")
    assert (gpt2.intermediate, gpt2.layers, gpt2.keys) == (64, 3, 16)
    assert gpt2.outside == (64 + 1024 + 2) * 16  # tokens, positions and the last norm
    assert gpt2.linear_sizes == 3 * (64 + 32 + 80 + 80)
    assert read_shape(OPTConfig(ffn_dim=24, num_hidden_layers=1), "auto").intermediate == 24
    assert read_shape(MambaConfig(vocab_size=64, num_hidden_layers=1), "auto").layers == 1


def test_a_token_of_a_mixture_goes_through_several_experts() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = read_shape(MixtralConfig(vocab_size=64, num_key_value_heads=1, num_experts_per_tok=3, **sizes), "auto")
    assert shape.intermediate == 3 * 24
    assert shape.linear_sizes == 32 + 24 + 24 + 32  # the layers of attention; experts have no adapter


@pytest.mark.parametrize(("moments", "of_weight"), [("float32", 14), ("bfloat16", 10)])
def test_the_optimizer_of_bfloat16_weights_takes_ten_or_fourteen_bytes_for_each(
    moments: Literal["float32", "bfloat16"], of_weight: int
) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES)).bfloat16()
    optimizer = make_adamw(model, 1e-3, moments=moments)
    model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    size = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    size += sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.ndim)
    shape = read_shape(model.config, "bfloat16")
    config = Config.model_validate({"policy": {"dtype": "bfloat16"}, "ppo": {"moments": moments}})
    # before the first gradient the reference model is there in place of it, 2 bytes and not 4
    assert stage("ppo", estimate_memory(shape, config)).optimizer == size == shape.parameters * of_weight


def test_four_processes_share_weights_and_optimizer() -> None:
    """Parts of float32 weights, gradients and moments; what belongs to no layer, and two layers, are whole."""
    shape = read_shape(Qwen3Config(**SIZES), "bfloat16")
    layer = (shape.parameters - shape.outside) // shape.layers
    assert shape.outside == sum(
        p.numel() for n, p in Qwen3ForCausalLM(Qwen3Config(**SIZES)).named_parameters() if "layers" not in n
    )
    whole = 2 * (shape.outside + 2 * layer)
    settings = {"policy": {"dtype": "bfloat16"}, "ppo": {"sharding": "fsdp"}}
    full = stage("ppo", estimate_memory(shape, Config.model_validate(settings), processes=4))
    assert (full.weights, full.optimizer) == (shape.parameters + whole, 3 * shape.parameters + whole)
    settings["policy"]["lora_rank"] = 4
    lora = stage("ppo", estimate_memory(shape, Config.model_validate(settings), processes=4))
    assert lora.weights == shape.parameters / 2 + whole + lora.optimizer / 3
    alone = stage("ppo", estimate_memory(shape, Config.model_validate(settings), processes=1))
    assert alone.weights == 2 * shape.parameters + lora.optimizer / 3


def test_the_cache_holds_keys_and_values_of_all_episodes_that_are_played_together() -> None:
    shape = read_shape(Qwen3Config(**SIZES), "float32")
    rollout = {"episodes": 100, "shards": 4, "batch_size": 64}
    config = Config.model_validate({"policy": {"max_context": 1000}, "rollout": rollout})
    # 25 episodes in a shard, 1000 tokens, 4 layers, keys and values of 2 heads of 64 numbers, 4 bytes each
    assert stage("rollout", estimate_memory(shape, config)).cache == 25 * 1000 * 4 * 2 * 128 * 4
    assert stage("evaluate", estimate_memory(shape, config)).cache == 64 * 1000 * 4 * 2 * 128 * 4


def test_gradient_checkpointing_keeps_the_input_of_each_layer_and_one_layer() -> None:
    shape = read_shape(Qwen3Config(**SIZES), "float32")
    plain, checkpointed = (
        stage("ppo", estimate_memory(shape, Config.model_validate({"ppo": {"gradient_checkpointing": on}}))).activations
        for on in (False, True)
    )
    tokens, logits = 8 * 768, 2 * 8 * 768 * 256 * 4
    # 8 * 256 + 4 * (256 + 128 + 768) numbers in a layer, of which there are 4
    assert plain == tokens * 4 * 4 * 6656 + logits
    assert checkpointed == tokens * 4 * (6656 + 4 * 256) + logits


def test_a_stage_that_cannot_fit_is_refused_with_what_may_help() -> None:
    stages = [
        StageMemory("rollout", weights=1 * GIB, cache=30 * GIB),
        StageMemory("ppo", weights=14 * GIB, optimizer=90 * GIB, activations=5 * GIB),
    ]
    check_memory(stages, {"rollout": Machine(40 * GIB, "A100"), "ppo": Machine(141 * GIB, "H200")})
    with pytest.raises(ConfigError) as excinfo:
        check_memory(stages, {"rollout": Machine(22 * GIB, "L4"), "ppo": Machine(80 * GIB, "H100")})
    assert str(excinfo.value).splitlines() == [
        "the run does not fit",
        "  rollout needs 31.0 GiB, and L4 has 22.0: lower rollout.batch_size or policy.max_context",
        "  ppo needs 109.0 GiB, and H100 has 80.0: set policy.lora_rank, policy.dtype: bfloat16 or, with several "
        "processes, ppo.sharding: fsdp; or take a larger machine or a smaller model",
    ]


def test_a_stage_whose_files_do_not_fit_the_disk_is_refused() -> None:
    stages = [
        StageMemory("prepare", weights=1 * GIB, disk=30 * GIB),
        StageMemory("ppo", weights=1 * GIB, disk=90 * GIB),
    ]
    check_memory(stages, dict.fromkeys(("prepare", "ppo"), Machine(2 * GIB, "L4", disk=90 * GIB)))
    with pytest.raises(ConfigError) as excinfo:
        check_memory(stages, dict.fromkeys(("prepare", "ppo"), Machine(2 * GIB, "L4", disk=60 * GIB)))
    assert str(excinfo.value).splitlines() == [
        "the run does not fit",
        "  ppo needs 90.0 GiB of disk, and 60.0 are there: raise limits.storage of the profile, on this machine free "
        "its temporary folder or name another with TMPDIR; or set policy.lora_rank",
    ]
