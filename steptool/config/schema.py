"""The configuration of a run: one YAML file, one tree of checked fields. Unknown or ill-typed fields are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from steptool.config.base import ConfigError, Positive, Share, StrictModel, explained, read_mapping


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Literal["desk", "toolbench", "jsonl", "recorded", "bfcl"] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: own tasks;
    recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval."""
    paths: list[str] = []
    """Files, folders or urls of the source (none for desk and bfcl)."""
    recorded_answers: list[str] = []
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. Those of the source `recorded` need not be named again."""
    environment: str = ""
    """What answers the calls of tasks from files that name no environment; empty: replay. It also gives the tools of
    tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Training queries: drawn from the world, or kept at most from the source."""
    validation_queries: Positive = 200
    heldout_queries: Positive = 400
    first: list[str] = []
    """SHA-256 of files whose tasks and recordings come first where a limit leaves some out; `workflows/retrain.py`
    names the new ones."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""


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


class McpConfig(StrictModel):
    """An MCP server: a program to start or an address to call. ${NAME} stands for an environment variable of ours."""

    command: list[str] = []
    """Program and arguments of a server that talks over its standard input and output."""
    env: dict[str, str] = {}
    """Environment variables of the program, besides PATH, HOME and the like."""
    url: str = ""
    """Address of a server that talks streamable HTTP, in place of a command."""
    headers: dict[str, str] = {}
    """Headers of every request to the url."""
    shared: bool = False
    """One process or connection for all episodes at once, instead of one for each."""


class ToolBenchConfig(StrictModel):
    """Tools of ToolBench: a server of the `/virtual` protocol, responses recorded earlier, or both."""

    url: str = ""
    """Address of the server, as in http://localhost:8080/virtual; empty: answers come from the cache alone."""
    key_variable: str = "TOOLBENCH_KEY"
    """Environment variable that holds the key for the server; a server that needs none takes an unset one."""
    strip: Literal["", "truncate", "filter", "random"] = "truncate"
    """How the server shortens what an API says: ToolBench's names; StableToolBench's server does not look at it."""
    cache: str = ""
    """File of recorded responses, asked before the server and filled from it; empty: none. A url is only read."""


class ToolsConfig(StrictModel):
    """What answers the calls, and the limits on every call."""

    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that a call may take, further attempts included."""
    retries: Annotated[int, Field(ge=0)] = 2
    """Further attempts after a transport error, each after twice the wait of the one before."""
    concurrency: Positive = 32
    """Calls of different episodes that run at once, where calls may block."""
    observation_limit: Positive = 8192
    """Characters of an observation; a longer one is cut and says so."""
    functions: str = ""
    """Python tools: "package.module:name" or "path/to/file.py:name" of a class or of a list of functions."""
    mcp: McpConfig = McpConfig()
    toolbench: ToolBenchConfig = ToolBenchConfig()


class EndpointConfig(StrictModel):
    """A chat model behind an HTTP endpoint of OpenAI's form."""

    base_url: str = ""
    """Address up to the version, as in https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: str = ""
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset for a server that needs none."""
    concurrency: Positive = 16
    """Requests in flight at once."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that the server may stay silent; all attempts and the waits between them: retries + 1 times as long."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Further attempts after a lost connection, a 408, 409, 429 or 5xx and an answer that is no chat completion."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 1024
    """Tokens of an answer, at most."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens read."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Money per million tokens written."""


class AuditConfig(StrictModel):
    """What is checked of a round's rewards before anything learns from them. A run stops where a threshold is crossed.

    A figure that the round does not determine crosses none.
    """

    second: Literal["", "rules", "lcs", "truth"] = "truth"
    """Annotator whose opinion the rewards are compared with; empty: none."""
    previous: str = ""
    """File or url of the rewards of an earlier run, which drift is measured against; empty: none."""
    max_missing: Share = 0.5
    """Share of the episodes that cannot be learned from: a score that their reward needs is missing."""
    min_auroc: Share = 0.0
    """Chance that a solved episode has a higher mean Contribution than one that was not solved."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Cohen's kappa with the second opinion on whether a step contributes."""
    max_farming: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Correlation of an episode's step rewards with its number of steps."""


class JudgeConfig(StrictModel):
    """A chat model that scores steps, judges outcomes and compares answers (docs/judge.md)."""

    endpoint: EndpointConfig = EndpointConfig()
    votes: Positive = 3
    """Answers asked for each trajectory; a score is their mean."""
    attempts: Positive = 3
    """Times that a vote is asked for until its answer can be used; after that it is missing."""
    deadline: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds for all votes of a stage; those that have not come by then are missing."""
    observation_limit: Positive = 2000
    """Characters of a call's arguments, of an observation and of an answer that the judge sees; a cut is marked."""
    cache: str = ""
    """File of the judge's replies, asked before the endpoint and filled from it; empty: none."""


class RewardConfig(StrictModel):
    """From components to one reward per step.

    r_t = step_weight * (alpha * succ_t + contribution_t) for t < T; r_T = IsSolved.
    """

    annotator: Literal["rules", "lcs", "truth", "judge"] = "rules"
    """rules: from the text, by the flow of values; lcs: the published rules; truth: what the environment knows; judge:
    a chat model."""
    alpha: Annotated[float, Field(ge=0)] = 0.1
    step_weight: Annotated[float, Field(ge=0)] = 0.3
    succ_calling: Literal["bonus", "penalty"] = "penalty"
    """bonus: succ in {0, 1} as published; penalty: succ in {-1, 0}, the same order but nothing to farm."""
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


class SearchConfig(StrictModel):
    """DFSDT, the depth-first tree search. Its depth is the number of steps that an episode may take."""

    beam: Positive = 2
    """Turns made from one node, at most: the 2 of DFS_woFilter_w2, which ToolLLM and StepTool evaluate with; 1: the
    chain."""
    max_turns: Positive = 30
    """Turns sampled in one search, at most: max_query_count in StepTool's evaluation; ToolBench's own allows 200."""
    give_up_levels: Positive = 2
    """Turns taken back when the model gives up: prune_back_length in ToolBench. After any other end it is one."""
    hints: bool = True
    """Whether the model is told what was tried from a node, as in ToolBench; false suits small models, which such a
    message throws off course, and asks for a sampled search: a greedy one would make the same turn again."""


class EvaluatedPolicy(StrictModel):
    """One of the policies that `workflows/evaluate.py` compares."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name in the results and in names of files."""
    kind: Literal["model", "endpoint", "playback"] = "model"
    """model: a causal language model; endpoint: a model behind an OpenAI-compatible endpoint; playback: the reference
    solution of each query or, where it has none, the first recorded answer."""
    model: str = ""
    """embedded, a model folder, the url of one or a Hugging Face id (kind model only)."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint (kind endpoint only)."""
    cache: str = ""
    """File of the endpoint's replies, asked before it and filled from it: an evaluation that is started again pays for
    no turn twice (kind endpoint only); empty: none."""
    strategy: Literal["chain", "dfsdt"] = "chain"
    """chain: one call after the other; dfsdt: the tree search of `search` (kind model only)."""

    @model_validator(mode="after")
    def _complete(self) -> EvaluatedPolicy:
        if self.kind == "model" and not self.model:
            raise ValueError(f"the policy '{self.name}' of the kind model needs the field model")
        if self.kind == "endpoint" and not (self.endpoint.base_url and self.endpoint.model):
            raise ValueError(f"the policy '{self.name}' of the kind endpoint needs endpoint.base_url and .model")
        if self.kind != "endpoint" and self.cache:
            raise ValueError(f"the policy '{self.name}': a cache of replies is for the kind endpoint only")
        if self.kind != "model" and self.strategy != "chain":
            raise ValueError(f"the policy '{self.name}': the strategy {self.strategy} is for the kind model only")
        return self


class EvaluationConfig(StrictModel):
    """Comparison of models: base, warm start and result in training, any policies in `workflows/evaluate.py`."""

    split: Literal["validation", "heldout", "all"] = "heldout"
    """all: every query, training queries too; in `workflows/evaluate.py` only."""
    sampled_repeats: Annotated[int, Field(ge=0)] = 1
    """Sampled episodes per query besides the greedy one."""
    bootstrap: Positive = 10000
    """Resamples of the paired bootstrap over queries."""
    policies: list[EvaluatedPolicy] = []
    """What `workflows/evaluate.py` compares; training does not look at it."""
    recorded_only: bool = False
    """Only queries with a recorded answer; in `workflows/evaluate.py` only."""
    verdicts: list[str] = []
    """Files or urls of stored verdicts on these policies by a judge, for the judged pass rate (docs/evaluation.md)."""
    judged: bool = False
    """The judge of `rewards.judge` is asked for a verdict on each greedy episode and for the better of each two."""
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need names of their own, got {names}")
        return self

    @property
    def contestants(self) -> int:
        """Number of policies to compare. Raises ConfigError if there is none."""
        if not self.policies:
            raise ConfigError("evaluation.policies is empty: name the policies to compare (docs/evaluation.md)")
        return len(self.policies)


class PromotionConfig(StrictModel):
    """When a retrained model takes the place of the one in service (docs/retraining.md). All shares are from 0 to 1."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The paired 95% interval of the gain in pass rate has to lie above this."""
    max_category_loss: Share = 0.05
    """Pass rate that a category of tools may lose; a loss that may have come by chance does not count."""
    max_invalid_rise: Share = 0.0
    """The paired 95% interval of the rise in the rate of invalid calls must not lie above this."""
    min_tasks: Positive = 30
    """Held-out tasks below which nothing is promoted."""
    approval: bool = False
    """A person is asked before a model is promoted."""
    approval_hours: Annotated[float, Field(gt=0)] = 20.0
    """Hours that the question waits; after that the night has failed."""


class Config(StrictModel):
    """A complete run."""

    seed: int = 0
    data: DataConfig = DataConfig()
    policy: PolicyConfig = PolicyConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    tools: ToolsConfig = ToolsConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: RewardConfig = RewardConfig()
    credit: CreditConfig = CreditConfig()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Config]) -> Config:
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigError(explained(error, "configs/laptop.yaml")) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Config:
        """As strict as with YAML, whatever the caller asks for: Flyte, which passes JSON, would be lenient."""
        return cls.model_validate(_whole(json.loads(json_data)))


def _whole(value: Any) -> Any:
    """Numbers without a fraction as integers: protobuf, through which a cluster passes them, knows only floats."""
    if isinstance(value, dict):
        return {k: _whole(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def load_config(path: str | Path) -> Config:
    """Read a YAML file. Raises ConfigError naming the file and every field that is wrong."""
    data = read_mapping(path)
    try:
        return Config.model_validate(data)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
