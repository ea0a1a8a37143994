"""What only a GPU can show: kernels for variable lengths, float32 products of bfloat16, compiled layers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from steptool.models import logprobs
from steptool.models.actor import Actor, collate
from steptool.models.optimizer import join_halves, make_adamw
from steptool.models.packed_attention import VARIABLE_LENGTH

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SIZES = {
    "vocab_size": 2048, "hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def make_model(kind: str, dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "sliding":
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=7)).to("cuda", dtype)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).to("cuda", dtype)


def sequences() -> list[SimpleNamespace]:
    rng = np.random.default_rng(1)
    rows = [(40, [(3, 12), (20, 33)]), (9, [(1, 8)]), (100, [(60, 99)])]
    return [SimpleNamespace(input_ids=rng.integers(1, 2048, length), spans=spans) for length, spans in rows]


def loss_and_gradients(actor: Actor, packed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    batch = collate(sequences(), packed).to(torch.device("cuda"))
    loss = -actor(batch).log_probs_N.mean()
    weights = [p for p in actor.policy.parameters() if p.requires_grad]
    return loss.detach(), [g.float() for g in torch.autograd.grad(loss, weights)]


def assert_close(actual: tuple, expected: tuple, tolerance: float) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=0)
    for a, b in zip(actual[1], expected[1], strict=True):
        assert (a - b).norm() <= 10 * tolerance * b.norm()


@pytest.mark.parametrize("kind", ["full", "sliding"])
def test_packed_sequences_give_what_padded_ones_give(kind: str) -> None:
    expected = loss_and_gradients(Actor(make_model(kind, torch.float32)), packed=False)
    assert_close(loss_and_gradients(Actor(make_model(kind, torch.float32)), packed=True), expected, 1e-4)
    packed = Actor(make_model(kind))
    assert packed.packed
    assert packed.policy.config._attn_implementation == VARIABLE_LENGTH
    assert_close(loss_and_gradients(packed, packed=True), expected, 2**-7)


@pytest.mark.parametrize("small_vocabulary", [16384, 10], ids=["plain", "tiled"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_and_checkpointed_layers_give_the_same(
    small_vocabulary: int, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "SMALL_VOCABULARY", small_vocabulary)
    expected = loss_and_gradients(Actor(make_model("full")), packed=True)
    actor = Actor(make_model("full"))
    if checkpointed:
        actor.checkpoint_activations()
    actor.compile_layers()
    assert_close(loss_and_gradients(actor, packed=True), expected, 2**-7)


def test_tiles_of_logits_are_float32_products_of_bfloat16() -> None:
    """Log-probabilities agree with float32 arithmetic on the same weights far closer than bfloat16 logits could."""
    torch.manual_seed(0)
    head = torch.nn.Linear(256, 20_000, bias=False).to("cuda", torch.bfloat16)
    head.weight.data.mul_(30)
    states = torch.randn(64, 256, device="cuda", dtype=torch.bfloat16)
    targets = torch.arange(64, device="cuda") * 300
    config = SimpleNamespace(get_text_config=SimpleNamespace)
    lm = SimpleNamespace(get_output_embeddings=lambda: head, config=config)
    expected = (states.double() @ head.weight.double().T).log_softmax(-1)
    for fused in (False, True):
        log_probs_N, entropy_N = logprobs.compute_token_log_probs(lm, states, targets, 1.0, logprobs.TileWays(fused))  # type: ignore[arg-type]
        target_logits = expected.gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(log_probs_N.double(), target_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(entropy_N.double(), -(expected.exp() * expected).sum(1), atol=1e-3, rtol=1e-3)


def test_weights_in_halves_follow_float32_ones() -> None:
    half = torch.nn.Linear(64, 64).to("cuda", torch.bfloat16)
    full = torch.nn.Linear(64, 64).cuda()
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    optimizer = make_adamw(half, 1e-4)
    reference = torch.optim.AdamW(full.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    for step in range(20):
        for a, b in zip(half.parameters(), full.parameters(), strict=True):
            torch.manual_seed(step)
            a.grad = torch.randn(a.shape, device="cuda")
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(half.parameters(), full.parameters(), strict=True):
        torch.testing.assert_close(join_halves(a, optimizer.state[a]["low"]), b, atol=1e-7, rtol=1e-6)
