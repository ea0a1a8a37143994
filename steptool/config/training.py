"""The sections of the model and of how it learns: `policy`, `warm_start`, `rollout`, `rewards`, `credit`, `rounds` and
`ppo`.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from steptool.config.base import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    ConfigError,
    LearningRate,
    Natural,
    Positive,
    Share,
    StrictModel,
    Weight,
    refuse,
)
from steptool.config.tasks import JudgeConfig

FinishMode = Literal["tool", "text"]
"""How an episode ends: with the tool Finish, or with an answer in text."""


def _check_date(text: str) -> str:
    """The text, if it is a date. Raises ValueError otherwise."""
    date.fromisoformat(text)
    return text


def _check_lambda(value: float) -> float:
    """The value, if it is a lambda or -1. Raises ValueError otherwise."""
    if -1 < value < 0:
        raise ValueError(f"expected a number from 0 to 1, or -1 for the value of lam, got {value!r}")
    return value


def _check_temperature(value: float) -> float:
    """The value, if it is 0 or can be sampled at. Raises ValueError otherwise."""
    if 0 < value < LOWEST_TEMPERATURE:
        raise ValueError(f"expected 0, or a temperature of at least {LOWEST_TEMPERATURE}, got {value!r}")
    return value


class PolicyConfig(StrictModel):
    """The model to improve."""

    base: str = "embedded"
    """embedded: the small model shipped with the project; scratch: a tiny model with random weights, whose tokenizer is
    trained on the ingested text; otherwise a model folder, the url of one or a Hugging Face id."""
    chat_format: Literal["auto", "hermes", "llama", "qwen_xml", "glm", "deepseek", "gpt_oss", "mistral", "react"] = (
        "auto"
    )
    """The form of calls in the model's text. auto: as the chat template writes them, or react if the template has no
    tools. A template that does not write the chosen form gets plain messages (docs/chat-formats.md)."""
    chat_date: Annotated[str, AfterValidator(_check_date)] = "2026-01-01"
    """The date that a chat template prints as today's (Llama 3, gpt-oss), so that no episode depends on the day. Write
    it in quotation marks, as in "2026-01-01"."""
    max_context: Positive = 768
    """Tokens of prompt, calls and observations together. A prompt that does not fit is refused before training."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights that are trained and sampled from. auto: bfloat16 if the base was saved in it, otherwise
    float32. Optimizer, adapters, value head, log-probabilities and losses stay in float32 either way."""
    lora_rank: Natural = 0
    """0: full fine-tuning; otherwise LoRA of this rank on all linear layers; in a mixture of experts on those of
    attention."""
    lora_alpha: Positive = 16
    """Scale of the LoRA update; it has an effect only with a lora_rank."""


class WarmStartConfig(StrictModel):
    """Supervised fine-tuning before reinforcement."""

    demonstrations: Positive = 1500
    """Largest number of recorded or scripted trajectories to learn from."""
    steps: Natural = 130
    """Optimizer steps; 0: no warm start."""
    batch_size: Positive = 16
    """Trajectories per optimizer step."""
    learning_rate: LearningRate = 2e-3
    """Learning rate at its highest: it rises over the first tenth of the steps (50 at most) and decays after that."""
    slips: Share = 0.2
    """Chance per step that the scripted expert makes a useless or wrong call (desk only)."""
    shortcuts: Share = 0.45
    """Chance per demonstration that the scripted expert cuts a corner (desk only)."""


class RolloutConfig(StrictModel):
    """How episodes are sampled."""

    episodes: Positive = 96
    """Episodes in each round."""
    samples_per_query: Positive = 1
    """Episodes of each query in a round, played in the same shard. Algorithms that compare the tries at a query (grpo,
    gigpo, eto, credit.value: group_mean) need at least 2."""
    shards: Positive = 2
    """Map tasks that share a round's episodes."""
    batch_size: Positive = 128
    """Episodes decoded together."""
    max_steps: Positive = 12
    """Largest number of assistant steps in an episode, if the query sets no limit of its own."""
    max_new_tokens: Positive = 48
    """Largest number of tokens in an assistant step."""
    temperature: Annotated[float, Field(ge=LOWEST_TEMPERATURE, le=HIGHEST_TEMPERATURE)] = 0.7
    """Sampling temperature; PPO improves the policy at this temperature. Below 0.01 log-probabilities leave the range
    of the numbers, and vLLM samples at 0.01."""
    finish: FinishMode = "tool"
    """How an episode ends. tool: with a call of the tool Finish; text: with the first turn without a call, whose text
    is the answer, as agents in production do; the model then sees no Finish and cannot give up (docs/serve.md)."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What decodes, in rollouts and in evaluation. transformers: this package's own sampler, whose samples depend on
    the seed alone; vllm: vLLM in the process of the stage, faster on a GPU, from the extra gpu. Its samples depend on
    the seed and on rounding, which changes with the episodes that are played side by side."""
    cuda_graphs: bool = False
    """Whether the engine transformers records its decoding steps on a GPU as CUDA graphs, which launch all kernels of a
    step at once. On a CPU it changes nothing. It has not run on a GPU yet, so it is off; `make gpu` tests and measures
    it."""


class AuditConfig(StrictModel):
    """Checks of a round's rewards before the model learns from them (docs/annotators.md). A run stops if a figure
    crosses its threshold. A figure that cannot be computed for a round is not checked."""

    second: Literal["", "rules", "lcs", "overlap", "truth"] = "truth"
    """Second annotator, whose scores are compared with those of rewards.annotator; empty: no comparison."""
    previous: str = ""
    """File or url of the rewards of an earlier run, to measure drift from it; empty: drift is not measured."""
    max_missing: Share = 0.5
    """Largest share of the episodes that may lack a score which their reward needs. The model cannot learn from such an
    episode."""
    min_auroc: Share = 0.0
    """Smallest probability that a solved episode has a higher mean Contribution than one that was not solved; 0: not
    checked."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Smallest Cohen's kappa of the two annotators on whether a step contributes; -1: not checked."""
    require_signal: bool = True
    """Whether to stop if step rewards carry no signal: every Contribution is 0 although solved episodes have successful
    calls, or the mean Contribution ranks unsolved above solved episodes beyond chance (AUROC below .5)."""
    max_farming: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Largest correlation of an episode's step rewards with its number of steps; 1: not checked."""


class RewardConfig(StrictModel):
    """How the components become one reward per step: r_t = step_weight * (alpha * succ_t + contribution_t) before the
    last step, and IsSolved on the last."""

    annotator: Literal["rules", "lcs", "overlap", "truth", "judge"] = "rules"
    """Who scores the steps. rules: rules on the text, which follow changes and the flow of values; lcs: the published
    rules; overlap: the published rules without failed steps, which look at the answer alone; truth: what the
    environment knows; judge: a chat model."""
    alpha: Weight = 0.1
    """Weight of SuccCalling relative to Contribution."""
    step_weight: Weight = 0.3
    """Weight of the steps before the last relative to IsSolved. Too large a weight teaches the model to collect calls
    (see the farming check)."""
    succ_calling: Literal["bonus", "penalty"] = "penalty"
    """bonus: succ in {0, 1} as published; penalty: succ in {-1, 0}, the same order but nothing to farm."""
    contribution: Literal["score", "progress"] = "score"
    """score: each step earns its Contribution. progress: it earns the growth of a potential, the sum of the
    Contributions so far divided by progress_steps and at most 1; once that is reached, further steps earn nothing.
    Where the environment names its states (state_digest), a step that leads back to an earlier state gives back what
    the changes since then have earned."""
    progress_steps: Positive = 8
    """Number of contributing steps that a task needs. With contribution: progress each of them earns 1 /
    progress_steps."""
    redundant_cost: Weight = 0.5
    """Amount that a call loses, times step_weight, if it repeats an earlier call and gets the same result."""
    weights: Literal["fixed", "calibrated"] = "fixed"
    """fixed: the weights above. calibrated: SuccCalling and Contribution are each multiplied by max(0, 2 AUROC - 1),
    where AUROC says how well the component separated solved from unsolved episodes in the last rounds. A component that
    says nothing about the outcome then pays nothing."""
    calibration_rounds: Positive = 4
    """Rounds over which calibrated weights are averaged (a moving average)."""
    normalisation: Literal["none", "trajectory", "running"] = "none"
    """trajectory: the step rewards before the last are divided by their number; running: all rewards of a round are
    divided by their standard deviation over this round and those before it."""
    judge: JudgeConfig = JudgeConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _has_judge(self) -> RewardConfig:
        endpoint = self.judge.endpoint
        if self.annotator == "judge" and not (endpoint.base_url and endpoint.model):
            raise ValueError("the annotator judge needs rewards.judge.endpoint.base_url and .model")
        return self


class CreditConfig(StrictModel):
    """How rewards become advantages (generalised advantage estimation)."""

    level: Literal["token", "step"] = "step"
    """token: over action tokens packed end to end; step: one value per step, its advantage on all its tokens."""
    gamma: Share = 0.95
    """Discount per step, or per token at the level token."""
    lam: Share = 1.0
    """Weight of longer returns relative to the values (lambda)."""
    value_lam: Annotated[float, Field(ge=-1, le=1), AfterValidator(_check_lambda)] = -1.0
    """Lambda of the returns that the value head learns from, from 0 to 1; -1: the same as lam."""
    value: Literal["head", "group_mean"] = "head"
    """Where the values of states come from. head: the value head; group_mean: the mean return of the steps that a round
    took in the same state (credit.state)."""
    state: Literal["calls", "observation", "digest"] = "calls"
    """When two steps of a query are in the same state (gigpo and group_mean only). calls: after the same calls;
    observation: after the same observation, where the environment shows its whole state, as a game does; digest: where
    the environment's own digest of its state is equal, which its session gives by the method state_digest."""
    state_weight: Weight = 1.0
    """Weight of a step's advantage within its state, relative to the advantage of its episode (gigpo only)."""
    group_scale: bool = True
    """Divide differences within a group by the deviation of the group (grpo and gigpo only)."""
    whiten: bool = True
    """Shift and scale a round's advantages to mean 0 and deviation 1."""
    whiten_by: Literal["token", "step"] = "token"
    """What that mean and deviation are taken over: tokens, or steps, each of which counts once."""
    negative_weight: Share = 0.0
    """Factor of negative advantages: 1 takes them as they are, 0 learns from positive ones alone. rft and eto have
    no advantages."""
    negative_min_probability: Share = 0.0
    """Tokens with a negative advantage are left out where the policy gave them a lower probability than this."""

    @model_validator(mode="after")
    def _check_level(self) -> CreditConfig:
        if self.level == "token" and self.value == "group_mean":
            raise ValueError("value: group_mean compares steps, so it needs level: step")
        if self.level == "token" and self.whiten_by == "step":
            raise ValueError("whiten_by: step counts one advantage for each step, so it needs level: step")
        if self.whiten_by == "step" and not self.whiten:
            raise ValueError("whiten_by: step needs whiten: true")
        return self


class RoundsConfig(StrictModel):
    """Where the stages of the rounds run."""

    placement: Literal["auto", "pods", "together"] = "auto"
    """pods: each step of a round and each shard is a stage with a machine of its own kind; together: one stage plays,
    annotates, audits and trains, so that a round starts no stage and loads no model again; auto: together in a local
    run, unless the profile trains in several processes, and pods on a cluster. The result is the same
    (docs/run-on-a-cluster.md)."""
    per_stage: Positive = 8
    """Number of rounds in one stage, where rounds are placed together."""

    def are_together(self, *, is_local: bool) -> bool:
        """Whether one stage makes several rounds. `is_local` tells a local run from a run on a cluster."""
        return self.placement == "together" or (self.placement == "auto" and is_local)


class PPOConfig(StrictModel):
    """The optimisation."""

    algorithm: Literal["step_ppo", "rft", "grpo", "gigpo", "eto", "archer"] = "step_ppo"
    """step_ppo: PPO with credit for each step; rft: rejection fine-tuning on solved episodes; grpo, gigpo: advantages
    within the group of tries at a query; eto: DPO on pairs of a better and a worse try; archer: PPO with a critic of
    steps, Q - V (docs/credit.md)."""
    reward: Literal["step", "final"] = "step"
    """step: StepTool's step rewards; final: only IsSolved, the PPO baseline."""
    rounds: Positive = 16
    """Rounds of rollout, annotation and training; each rolls out the policy of the one before."""
    epochs: Positive = 2
    """Passes over a round's trajectories."""
    batch_size: Positive = 24
    """Trajectories per optimizer step, over all processes."""
    micro_batch_size: Positive = 8
    """Trajectories per forward pass on one process. Lower it when memory runs out; the result stays the same."""
    tokens_per_pass: Natural = 0
    """Tokens per forward pass on one process, padding included, in place of micro_batch_size; it holds for the warm
    start too. A longer trajectory gets a pass of its own. 0: micro_batch_size is the limit, as it always is for eto."""
    gradient_checkpointing: bool = False
    """Compute activations a second time in the backward pass instead of keeping them: less memory, a third more work.
    It holds for the warm start too."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """What several processes share. ddp: each holds the whole model; fsdp: each holds a part of every weight and of the
    optimizer's state (FSDP2), for models that do not fit one GPU; the processes need a disk in common. It holds for the
    warm start too. One process alone holds the whole model either way."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the optimizer keeps the two moments of weights that are trained in bfloat16; bfloat16 saves 4
    bytes per weight and rounds the moments. Adapters, float32 weights and models that fsdp splits keep float32. It
    holds for the warm start too."""
    compile: bool = False
    """Compile the layers of the model: faster after a minute or so of compiling, most of which later rounds on the
    same machine are spared. It helps bfloat16 most, on a CPU too. It needs a C++ compiler."""
    learning_rate: LearningRate = 5e-4
    """Learning rate of the policy in the first round."""
    final_learning_rate: Share = 0.1
    """Share of the learning rate left in the last round (linear decay over rounds)."""
    value_learning_rate: LearningRate = 1e-3
    """Learning rate of the value head."""
    value_warmup_rounds: Natural = 1
    """First rounds in which only the value head learns (value pretraining of VAPO, arXiv 2504.05118)."""
    detach_value: bool = True
    """Whether the value loss stays out of the backbone."""
    value_coef: Weight = 1.0
    """Weight of the value loss."""
    kl_coef: Weight = 0.005
    """Weight of the penalty for moving away from the warm start (KL divergence in nats per token)."""
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Range of the probability ratio within which an update counts: 1 - clip to 1 + clip."""
    clip_high: Annotated[float, Field(ge=0)] = 0.0
    """Sets the upper end of that range to 1 + clip_high; 0: the same as clip."""
    ratio: Literal["token", "step"] = "token"
    """token: each token has its own probability ratio; step: tokens of a step share the geometric mean of theirs."""
    nll_coef: Weight = 1.0
    """Weight of the negative log-likelihood of solved episodes, added to the policy loss (VAPO, arXiv
    2504.05118). rft and eto do not use it."""
    entropy_coef: Weight = 0.0
    """Weight of an entropy bonus per token (nats)."""
    dpo_beta: Annotated[float, Field(gt=0, le=1000)] = 0.1
    """How strongly eto holds the policy to where the round started (beta of DPO)."""
    rft_temperature: Annotated[float, Field(ge=0, le=HIGHEST_TEMPERATURE), AfterValidator(_check_temperature)] = 0.0
    """Temperature at which rft takes its likelihood, at least 0.01; 0: that of the rollouts. A temperature above that
    of the rollouts sharpens the policy in every round."""
    clip_value: Annotated[float, Field(gt=0)] = 0.2
    """How far a value may move from its old one before its loss stops counting."""
    importance: Literal["none", "truncated", "masked"] = "none"
    """What corrects for an engine whose probabilities are not quite those of training. none: nothing; truncated: a
    token's policy loss is multiplied by its importance weight, training's probability divided by the engine's, up to
    importance_cap; masked: by the same weight, and tokens beyond the cap are left out."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Importance weight beyond which a token is cut or left out."""
    max_mismatch: Annotated[float, Field(ge=0)] = 0.1
    """Largest mean difference, in nats per token, between the log-probabilities of engine and training before a round's
    first update. The run stops if it is larger. 0: not checked."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; a larger gradient is scaled down to it."""


_COMPARE_TRIES = ("grpo", "gigpo", "eto")
HAVE_NO_VALUES = ("rft", *_COMPARE_TRIES)
"""Algorithms without a value head."""
HAVE_NO_ADVANTAGES = ("rft", "eto")
"""Algorithms that learn from outcomes alone."""


def check_learning(rollout: RolloutConfig, rewards: RewardConfig, credit: CreditConfig, ppo: PPOConfig) -> None:
    """Raise ConfigError, which names the fields, for settings of several sections that contradict each other."""
    algorithm, tries = ppo.algorithm, rollout.samples_per_query
    compares = algorithm in _COMPARE_TRIES or credit.value == "group_mean"
    setting = algorithm if algorithm in _COMPARE_TRIES else "credit.value: group_mean"
    compares_states = algorithm == "gigpo" or credit.value == "group_mean"
    outcome_alone = algorithm in HAVE_NO_ADVANTAGES or ppo.reward == "final"
    problems = [
        (rollout.episodes % tries > 0, f"rollout.episodes: {rollout.episodes} is not a multiple of samples_per_query"),
        (compares and tries < 2, f"{setting} compares tries at a query: set rollout.samples_per_query to 2 or more"),
        (algorithm in ("grpo", "gigpo") and credit.whiten, f"{algorithm} scales by group: set credit.whiten: false"),
        (algorithm in ("gigpo", "archer") and credit.level != "step", f"{algorithm} needs credit.level: step"),
        (credit.value == "group_mean" and algorithm != "step_ppo", "credit.value: group_mean is for step_ppo only"),
        (credit.value_lam >= 0 and algorithm in HAVE_NO_VALUES, f"{algorithm} has no value head for credit.value_lam"),
        (credit.value_lam >= 0 and credit.value != "head", "credit.value_lam is for credit.value: head only"),
        (credit.state != "calls" and not compares_states, "credit.state is for gigpo and value: group_mean only"),
        (credit.state_weight != 1 and algorithm != "gigpo", "credit.state_weight is for gigpo only"),
        (not credit.group_scale and algorithm not in ("grpo", "gigpo"), "credit.group_scale is for grpo, gigpo only"),
        (ppo.ratio == "step" and credit.level != "step", "ppo.ratio: step needs credit.level: step"),
        (rewards.weights == "calibrated" and outcome_alone, "rewards.weights: calibrated needs rewards of steps"),
        (ppo.rft_temperature > 0 and algorithm != "rft", "ppo.rft_temperature is for rft only"),
        (ppo.sharding == "fsdp" and algorithm == "eto", "eto trains whole models through TRL: set ppo.sharding: ddp"),
    ]  # fmt: skip
    for field, is_set in _list_policy_options(credit, ppo).items():
        problems.append((is_set and algorithm in HAVE_NO_ADVANTAGES, f"{algorithm} has no advantages for {field}"))
    messages = [message for wrong, message in problems if wrong]
    if messages:
        raise ConfigError(refuse(messages))


def _list_policy_options(credit: CreditConfig, ppo: PPOConfig) -> dict[str, bool]:
    """Options of the policy's loss that go with advantages, and whether each is set."""
    return {
        "ppo.ratio: step": ppo.ratio == "step",
        "ppo.importance": ppo.importance != "none",
        "ppo.clip_high": ppo.clip_high > 0,
        "ppo.entropy_coef": ppo.entropy_coef > 0,
        "credit.negative_min_probability": credit.negative_min_probability > 0,
    }
