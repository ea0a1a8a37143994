"""The sections `policy`, `warm_start`, `rollout`, `credit` and `ppo`: the model and how it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from steptool.config.base import Positive, Share, StrictModel


class PolicyConfig(StrictModel):
    """The model to improve."""

    base: str = "embedded"
    """embedded: the small model shipped with the project; scratch: a tiny one from random weights, its tokenizer
    trained on the ingested text; otherwise a model folder, the url of one or a Hugging Face id."""
    chat_format: Literal["auto", "hermes", "llama", "react"] = "auto"
    """How calls stand in the model's text. auto: as the chat template writes them, and ReAct where it knows no tools;
    where the template does not write the format named, it is given plain messages (docs/chat-formats.md)."""
    max_context: Positive = 768
    """Tokens of prompt, calls and observations together."""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """0: full fine-tuning; else LoRA of this rank on all linear layers."""
    lora_alpha: Positive = 16


class WarmStartConfig(StrictModel):
    """Supervised fine-tuning before reinforcement."""

    demonstrations: Positive = 1500
    """Recorded or scripted trajectories to learn from, at most."""
    steps: Annotated[int, Field(ge=0)] = 150
    """Optimizer steps; 0 goes without a warm start."""
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
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


class CreditConfig(StrictModel):
    """From rewards to advantages."""

    level: Literal["token", "step"] = "step"
    """token: GAE over action tokens packed end to end; step: one value per step, its advantage on all its tokens."""
    gamma: Share = 0.95
    lam: Share = 1.0
    whiten: bool = True


class PPOConfig(StrictModel):
    """The optimisation."""

    algorithm: Literal["step_ppo", "rft"] = "step_ppo"
    """rft: rejection fine-tuning on solved episodes, the baseline without a value function."""
    reward: Literal["step", "final"] = "step"
    """step: StepTool; final: only IsSolved, the PPO baseline."""
    rounds: Positive = 24
    epochs: Positive = 3
    batch_size: Positive = 24
    """Trajectories per optimizer step, over all processes."""
    micro_batch_size: Positive = 8
    """Trajectories per forward pass on one process."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    final_learning_rate: Share = 0.1
    """Share of the learning rate left in the last round (linear decay over rounds)."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    value_warmup_rounds: Annotated[int, Field(ge=0)] = 2
    """First rounds in which only the value head learns."""
    detach_value: bool = True
    """The value loss does not reach the backbone."""
    value_coef: Annotated[float, Field(ge=0)] = 1.0
    kl_coef: Annotated[float, Field(ge=0)] = 0.005
    clip: Annotated[float, Field(gt=0)] = 0.2
    clip_value: Annotated[float, Field(gt=0)] = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
