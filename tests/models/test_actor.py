import math
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from steptool.config import PolicyConfig
from steptool.models import logprobs
from steptool.models.actor import (
    Actor,
    ValueHead,
    collate,
    compute_action_states,
    give_back_free_memory,
    load_value_head,
    save_value_head,
)
from steptool.models.adapter import add_adapter
from steptool.models.load import load_model, make_tiny_model, train_tokenizer
from steptool.models.logprobs import AccumulatingEmbedding, TileWays, compute_token_log_probs
from steptool.models.optimizer import make_adamw
from steptool.models.packed_attention import can_pack


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(["Find the order and cancel it."] * 20, vocabulary=300)
    tokenizer.save_pretrained(folder)
    make_tiny_model(tokenizer, max_context=128, seed=0, hidden=32).save_pretrained(folder)
    return folder


def small_models() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return [
        LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, head_dim=8, final_logit_softcapping=0.5)),
        GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2)),
        mixture(Llama4TextConfig(**sizes, **heads, head_dim=8, num_local_experts=2, intermediate_size_mlp=32)),
    ]


def mixture(config: Llama4TextConfig) -> torch.nn.Module:
    """A Llama 4, whose experts transformers leaves without numbers."""
    model = Llama4ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def sequences(vocabulary: int = 97) -> list[SimpleNamespace]:
    rng = np.random.default_rng(1)
    spans = [[(3, 6), (9, 12)], [(1, 2)], [(2, 8)]]
    return [SimpleNamespace(input_ids=rng.integers(1, vocabulary, 12), spans=s) for s in spans]


@pytest.mark.parametrize("small_vocabulary", [16384, 10], ids=["plain", "tiled"])
@pytest.mark.parametrize("model", small_models(), ids=lambda m: type(m).__name__)
def test_log_probs_are_those_of_the_models_own_logits(
    model: torch.nn.Module, small_vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "SMALL_VOCABULARY", small_vocabulary)
    rows = sequences()
    out = Actor(model)(collate(rows))
    expected, entropy = [], []
    for row in rows:
        logits = model(input_ids=torch.tensor(row.input_ids)[None]).logits[0].float()
        everything = torch.log_softmax(logits, -1)
        for start, end in row.spans:
            for position in range(start, end):
                expected.append(everything[position - 1, row.input_ids[position]])
                entropy.append(-(everything[position - 1].exp() * everything[position - 1]).sum())
    torch.testing.assert_close(out.log_probs_N, torch.stack(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.entropy_N, torch.stack(entropy), atol=1e-5, rtol=1e-5)
    weights = [p for p in model.parameters() if p.requires_grad]
    actual = torch.autograd.grad(out.log_probs_N.sum(), weights, allow_unused=True)
    theirs = torch.autograd.grad(torch.stack(expected).sum(), weights, allow_unused=True)
    for a, b in zip(actual, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def loss_and_gradients(actor: Actor, packed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """-log p of the action tokens, each weighed by its number, and the gradient of every weight."""
    log_probs_N = actor(collate(sequences(), packed)).log_probs_N
    loss = -(log_probs_N * torch.arange(1.0, 1 + len(log_probs_N))).mean()
    weights = [p for p in actor.policy.parameters() if p.requires_grad]
    return loss.detach(), [g.float() for g in torch.autograd.grad(loss, weights)]


@pytest.mark.parametrize("model", small_models(), ids=lambda m: type(m).__name__)
def test_packed_padded_and_checkpointed_give_the_same_loss_and_gradients(model: torch.nn.Module) -> None:
    plain, expected = loss_and_gradients(Actor(model), packed=False)
    variants = [(Actor(model), True)] if can_pack(model) else []
    checkpointed = Actor(model)
    checkpointed.checkpoint_activations()
    variants += [(checkpointed, False)] + [(checkpointed, True)] * can_pack(model)
    for actor, packed in variants:
        loss, gradients = loss_and_gradients(actor, packed)
        torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
def test_compiled_layers_give_the_same_loss_and_gradients(dtype: torch.dtype, tolerance: float) -> None:
    model = small_models()[0].to(dtype)
    plain, expected = loss_and_gradients(Actor(model), packed=False)
    compiled = Actor(model)
    compiled.compile_layers()
    loss, gradients = loss_and_gradients(compiled, packed=False)
    torch.testing.assert_close(loss, plain, atol=0, rtol=tolerance)
    for a, b in zip(gradients, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-4


@pytest.mark.filterwarnings("error::FutureWarning")
def test_checkpointing_computes_the_layers_twice_and_leaves_dropout_off() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5, attn_pdrop=0.5))
    actor, calls = Actor(model), []
    model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    before = actor(collate(sequences())).log_probs_N
    actor.checkpoint_activations()
    after = actor(collate(sequences())).log_probs_N
    assert torch.equal(before, after)
    assert len(calls) == 2
    after.sum().backward()
    assert len(calls) == 3


def test_checkpointing_leaves_the_dropout_of_a_layer_itself_off() -> None:
    """OPT's layers have no module for their dropout, and its masks know nothing of positions that begin anew."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "ffn_dim": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=97, num_attention_heads=2, dropout=0.5, **sizes))
    actor = Actor(model)
    before = actor(collate(sequences())).log_probs_N
    actor.checkpoint_activations()
    assert torch.equal(actor(collate(sequences())).log_probs_N, before)
    assert model.config.dropout == 0.5
    assert not can_pack(model)


@pytest.mark.parametrize("small_vocabulary", [16384, 10], ids=["plain", "tiled"])
def test_bfloat16_agrees_within_its_rounding(small_vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bits of mantissa: a relative error of 2^-8 per operation."""
    monkeypatch.setattr(logprobs, "SMALL_VOCABULARY", small_vocabulary)
    model = small_models()[0]
    expected, gradients = loss_and_gradients(Actor(model), packed=False)
    half = small_models()[0].bfloat16()
    out = Actor(half)(collate(sequences()))
    assert out.log_probs_N.dtype == out.entropy_N.dtype == torch.float32
    loss, rounded = loss_and_gradients(Actor(half), packed=False)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2**-8, atol=0)
    for a, b in zip(rounded, gradients, strict=True):
        assert (a - b).norm() < 0.03 * b.norm()


def test_the_tiles_of_a_large_vocabulary_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tiles of 1024 tokens and one of 128 against the plain way: values, and gradients of states and weights.

    What is compiled elsewhere has the precision of the weights, too.
    """
    torch.manual_seed(0)
    weight, hidden = torch.randn(3200, 8), torch.randn(5, 8)
    targets = torch.tensor([0, 1023, 1024, 3199, 2500])
    results = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    logprobs._compile.cache_clear()
    for small, ways in ((16384, None), (10, None), (10, TileWays(fused=True))):
        monkeypatch.setattr(logprobs, "SMALL_VOCABULARY", small)
        monkeypatch.setattr(logprobs, "_TILE_NUMBERS", {"cpu": 1})
        bias = torch.linspace(-1, 1, 3200).requires_grad_()
        head = SimpleNamespace(weight=weight.clone().requires_grad_(), bias=bias)
        states = hidden.clone().requires_grad_()
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(final_logit_softcapping=5.0, logit_scale=0.5))
        lm = SimpleNamespace(get_output_embeddings=lambda head=head: head, config=config)
        log_probs_N, entropy_N = compute_token_log_probs(lm, states, targets, 0.7, ways)  # type: ignore[arg-type]
        (log_probs_N * torch.arange(1.0, 6.0)).sum().backward()
        results.append([log_probs_N.detach(), entropy_N, states.grad, head.weight.grad, head.bias.grad])
    logprobs._compile.cache_clear()
    for plain, *others in zip(*results, strict=True):
        for tiled in others:
            torch.testing.assert_close(tiled, plain, atol=1e-5, rtol=1e-4)


def in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of more than ten tokens is large."""
    monkeypatch.setattr(logprobs, "SMALL_VOCABULARY", 10)


def padded_llama(tied: bool) -> LlamaForCausalLM:
    """A model whose padding token, the fifth of the first sequence, is looked up and learns nothing from that."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, pad_token_id=int(sequences()[0].input_ids[4])))


def add_up_two_passes(actor: Actor) -> dict[str, torch.Tensor | None]:
    """The gradients after `backward` of two forward passes."""
    for rows in (sequences()[:2], sequences()[2:]):
        actor(collate(rows)).log_probs_N.sum().backward()
    return {name: p.grad for name, p in actor.policy.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recomputed", [False, True])
def test_gradients_that_add_up_in_place_are_those_of_autograd(
    tied: bool, dtype: torch.dtype, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output layer and embedding in one or two tensors, for neither of which autograd makes a gradient."""
    in_tiles(monkeypatch)
    gradients, made = [], []
    for in_place in (False, True):
        actor = Actor(padded_llama(tied).to(dtype))
        make_adamw(actor.policy, 1e-3)  # makes gradients of bfloat16 weights float32
        if recomputed:
            actor.checkpoint_activations()
        if in_place:
            actor.accumulate_gradients()
            for module in (actor.policy.get_input_embeddings(), actor.policy.get_output_embeddings()):
                module.weight.register_hook(made.append)
        gradients.append(add_up_two_passes(actor))
    assert made == [None] * 4  # of two passes, each with a lookup and an output layer
    tolerance = 1e-5 if dtype == torch.float32 else 2**-6
    for name, expected in gradients[0].items():
        assert gradients[1][name].dtype == torch.float32 and not gradients[1][name].is_sparse
        assert (gradients[1][name] - expected).norm() <= tolerance * expected.norm(), name


def test_rows_of_a_bfloat16_gradient_are_added_up_in_float32_before_they_are_rounded() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 1, dtype=torch.bfloat16))
    embedding: Any = torch.nn.Embedding(3, 1)
    embedding.weight, embedding.__class__ = weight, AccumulatingEmbedding
    numbers = torch.tensor([256.0, 1.0, 1.0, 1.0, 1.0]).bfloat16()  # bfloat16 has no number between 256 and 258
    (embedding(torch.tensor([[1, 1, 1, 1, 1]])).flatten() * numbers).sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [0.0, 260.0, 0.0]


def test_tables_under_an_adapter_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    in_tiles(monkeypatch)
    gradients = []
    for in_place in (False, True):
        actor = Actor(add_adapter(padded_llama(tied=False), PolicyConfig(lora_rank=4), seed=0))
        if in_place:
            actor.accumulate_gradients()
        gradients.append(add_up_two_passes(actor))
    for name, expected in gradients[0].items():
        actual = gradients[1][name]
        assert (actual is None) == (expected is None) == ("lora" not in name), name
        assert actual is None or torch.equal(actual, expected), name


def test_only_action_tokens_are_learned(model_dir: Path) -> None:
    """Observation tokens are seen but are no targets: a later one may change without changing any loss."""
    actor = Actor(load_model(model_dir))
    (row, *_) = sequences()
    row.spans = [(3, 6)]
    variant = SimpleNamespace(input_ids=np.concatenate([row.input_ids[:6], row.input_ids[6:] + 1]), spans=row.spans)
    before, after = actor(collate([row])), actor(collate([variant]))
    assert torch.equal(before.log_probs_N, after.log_probs_N)
    assert torch.equal(before.states_NH, after.states_NH)


def test_padding_changes_nothing(model_dir: Path) -> None:
    actor = Actor(load_model(model_dir))
    short, long = sequences()[1], SimpleNamespace(input_ids=np.arange(5, 45), spans=[(30, 40)])
    alone = actor(collate([short]))
    together = actor(collate([short, long]))
    torch.testing.assert_close(alone.log_probs_N, together.log_probs_N[:1], atol=1e-6, rtol=1e-5)


def test_values_are_zero_at_first_and_detach_keeps_the_backbone(model_dir: Path) -> None:
    for detach in (True, False):
        actor = Actor(load_model(model_dir), ValueHead(32), detach_value=detach)
        states_NH = actor(collate(sequences())).states_NH
        assert (actor.compute_values(states_NH) == 0).all()
        torch.nn.init.ones_(actor.head.out.weight)
        actor.compute_values(states_NH).sum().backward()
        reached = any(p.grad is not None and p.grad.abs().max() > 0 for p in actor.policy.parameters())
        assert reached is not detach


def test_dropout_is_off_while_training() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5))
    actor = Actor(model)
    first, second = (actor(collate(sequences())).log_probs_N for _ in range(2))
    assert torch.equal(first, second)


def test_value_head_survives_the_folder(tmp_path: Path) -> None:
    head = ValueHead(16, seed=4)
    torch.nn.init.normal_(head.out.weight)
    save_value_head(head, tmp_path)
    hidden = torch.randn(5, 16)
    assert torch.equal(load_value_head(tmp_path, 16, seed=9)(hidden), head(hidden))
    assert (load_value_head(tmp_path / "none", 16, seed=9)(hidden) == 0).all()


def test_states_are_those_just_before_the_action(model_dir: Path) -> None:
    model = load_model(model_dir)
    (row, *_) = sequences()
    batch = collate([row])
    everything = model.base_model(input_ids=batch.input_ids_BL).last_hidden_state[0]
    torch.testing.assert_close(compute_action_states(model, batch), everything[[2, 3, 4, 8, 9, 10]])
    assert batch.targets_N.tolist() == row.input_ids[[3, 4, 5, 9, 10, 11]].tolist()


def test_a_model_without_a_value_head_says_so(model_dir: Path) -> None:
    with pytest.raises(ValueError, match="no value head"):
        Actor(load_model(model_dir)).compute_values(torch.zeros(1, 32))


def test_log_probs_are_those_of_the_rollouts_temperature() -> None:
    hidden_NH = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    model = SimpleNamespace(
        get_output_embeddings=lambda: SimpleNamespace(weight=torch.eye(2), bias=None),
        config=SimpleNamespace(get_text_config=SimpleNamespace),
    )
    log_probs_N, entropy_N = compute_token_log_probs(model, hidden_NH, torch.tensor([0, 0]), 0.5)  # type: ignore[arg-type]
    # logits / 0.5 = (2, 0) and (0, 4): p = 1 / (1 + e^-2) and 1 / (1 + e^4)
    assert log_probs_N.tolist() == pytest.approx([-0.126928, -4.018150], abs=1e-5)
    p = 0.880797
    assert entropy_N[0].item() == pytest.approx(-(p * math.log(p) + (1 - p) * math.log(1 - p)), abs=1e-4)


def read_resident_megabytes() -> float:
    """Memory that this process holds now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of the GNU C library")
def test_freed_memory_between_pieces_in_use_goes_back_to_the_system() -> None:
    """Of 200 MB in pieces of 100 kB each fiftieth stays in use, which keeps the heap as long as it was."""
    pieces = [b"x" * 100_000 for _ in range(2000)]
    kept = pieces[::50]
    del pieces
    before = read_resident_megabytes()
    give_back_free_memory()
    assert before - read_resident_megabytes() > 120
    assert len(kept) == 40
