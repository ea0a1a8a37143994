"""The sections `policy`, `warm_start`, `rollout`, `credit` and `ppo`: the model and how it learns."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from steptool.config.base import Natural, Positive, Share, StrictModel


def _check_date(text: str) -> str:
    """The text, if it is a date. Raises ValueError otherwise."""
    date.fromisoformat(text)
    return text


class PolicyConfig(StrictModel):
    """The model to improve."""

    base: str = "embedded"
    """embedded: the small model shipped with the project; scratch: a tiny one from random weights, its tokenizer
    trained on the ingested text; otherwise a model folder, the url of one or a Hugging Face id."""
    chat_format: Literal["auto", "hermes", "llama", "qwen_xml", "glm", "deepseek", "gpt_oss", "mistral", "react"] = (
        "auto"
    )
    """How calls stand in the model's text. auto: as the chat template writes them, and react where the template knows
    no tools. A template that does not write the format named is given plain messages (docs/chat-formats.md)."""
    chat_date: Annotated[str, AfterValidator(_check_date)] = "2026-01-01"
    """The date that a chat template prints as today's (Llama 3, gpt-oss), so that no episode depends on the day. In
    quotation marks, as in "2026-01-01"."""
    max_context: Positive = 768
    """Tokens of prompt, calls and observations together. A prompt that does not fit is refused before training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights that are trained and sampled from. auto: bfloat16 if the base was saved in it, otherwise
    float32. Optimizer, adapters, value head, log-probabilities and losses stay in float32 either way."""
    lora_rank: Natural = 0
    """0: full fine-tuning; otherwise LoRA of this rank on all linear layers."""
    lora_alpha: Positive = 16
    """Scale of the LoRA update; it counts only with a lora_rank."""


class WarmStartConfig(StrictModel):
    """Supervised fine-tuning before reinforcement."""

    demonstrations: Positive = 1500
    """Recorded or scripted trajectories to learn from, at most."""
    steps: Natural = 150
    """Optimizer steps; 0 goes without a warm start."""
    batch_size: Positive = 16
    """Trajectories per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate at its highest: it rises over the first tenth of the steps (50 at most) and decays after that."""
    slips: Share = 0.4
    """Chance per step that the scripted expert makes a useless or wrong call (desk only)."""
    shortcuts: Share = 0.9
    """Chance per demonstration that the scripted expert cuts a corner (desk only)."""


class RolloutConfig(StrictModel):
    """How episodes are sampled."""

    episodes: Positive = 96
    """Episodes in each round."""
    shards: Positive = 2
    """Map tasks that share a round's episodes."""
    batch_size: Positive = 128
    """Episodes decoded together."""
    max_steps: Positive = 12
    """Assistant steps per episode, where the query sets no limit of its own."""
    max_new_tokens: Positive = 48
    """Tokens per assistant step."""
    temperature: Annotated[float, Field(gt=0)] = 0.7
    """Sampling temperature; PPO improves the policy at this temperature."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What decodes, in rollouts and in evaluation. transformers: this package's own sampler, whose samples depend on
    the seed alone; vllm: vLLM in the process of the stage, faster on a GPU, from the extra gpu."""


class CreditConfig(StrictModel):
    """From rewards to advantages (generalised advantage estimation)."""

    level: Literal["token", "step"] = "step"
    """token: over action tokens packed end to end; step: one value per step, its advantage on all its tokens."""
    gamma: Share = 0.95
    """Discount per step, or per token at the level token."""
    lam: Share = 1.0
    """Weight of longer returns against the value head (lambda)."""
    whiten: bool = True
    """Shift and scale a round's advantages to mean 0 and deviation 1."""


class PPOConfig(StrictModel):
    """The optimisation."""

    algorithm: Literal["step_ppo", "rft"] = "step_ppo"
    """step_ppo: PPO with credit for each step; rft: rejection fine-tuning on solved episodes, the baseline without a
    value function."""
    reward: Literal["step", "final"] = "step"
    """step: StepTool's step rewards; final: only IsSolved, the PPO baseline."""
    rounds: Positive = 24
    """Rounds of rollout, annotation and training; each rolls out the policy of the one before."""
    epochs: Positive = 3
    """Passes over a round's trajectories."""
    batch_size: Positive = 24
    """Trajectories per optimizer step, over all processes."""
    micro_batch_size: Positive = 8
    """Trajectories per forward pass on one process. Lower it when memory runs out; the result stays the same."""
    tokens_per_pass: Natural = 0
    """Tokens per forward pass on one process, padding included, in place of micro_batch_size; it holds for the warm
    start too. A longer trajectory goes alone. 0: micro_batch_size is the limit."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them: less memory, a third more work.
    It holds for the warm start too."""
    compile: bool = False
    """Compile the layers of the model on a GPU: faster after a minute or so of compiling. It needs a C compiler."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Learning rate of the policy in the first round."""
    final_learning_rate: Share = 0.1
    """Share of the learning rate left in the last round (linear decay over rounds)."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the value head."""
    value_warmup_rounds: Natural = 2
    """First rounds in which only the value head learns."""
    detach_value: bool = True
    """Whether the value loss stays out of the backbone."""
    value_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the value loss."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.005
    """Penalty per token and nat for leaving the warm start."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Range of the probability ratio within which an update counts: 1 - clip to 1 + clip."""
    clip_value: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one before its loss stops counting."""
    importance: Literal["none", "truncated", "masked"] = "none"
    """What corrects for an engine whose probabilities are not quite those of training. none: nothing; truncated: a
    token's policy loss is multiplied by its importance weight, training's probability divided by the engine's, up to
    importance_cap; masked: by the same weight, and tokens beyond the cap are left out."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Importance weight beyond which a token is cut or left out."""
    max_mismatch: Annotated[float, Field(ge=0)] = 0.3
    """Nats per token, at most, by which the log-probabilities of engine and training may differ on average before a
    round's first update; the run stops beyond. 0: unchecked."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Norm of the gradient, at most; a larger gradient is scaled down to it."""
