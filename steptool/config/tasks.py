"""The sections of tasks and of their evaluation: `data`, `tools`, `evaluation` and `promotion`.

They say where tasks and recordings come from, what executes the calls and with which limits, what is compared, who
judges, and when a retrained model takes over. The sections of a chat model behind HTTP and of a judge, which `rewards`
has as well, are defined here.
"""

from __future__ import annotations

from itertools import permutations
from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from steptool.config.base import (
    HIGHEST_TEMPERATURE,
    ConfigError,
    FreeMapping,
    Natural,
    Positive,
    Seconds,
    Share,
    StrictModel,
    suggest_spelling,
)

SOURCE_NAMES = ("desk", "toolbench", "jsonl", "recorded", "bfcl", "environment")


def _check_source(name: str) -> str:
    if name not in SOURCE_NAMES and ":" not in name:
        raise ValueError(
            f"expected one of {', '.join(SOURCE_NAMES)}, or package.module:Class for a source of your own, got {name!r}"
            + suggest_spelling(name, SOURCE_NAMES)
        )
    return name


ENVIRONMENT_NAMES = ("bfcl", "desk", "functions", "mcp", "nemo_gym", "openenv", "replay", "toolbench", "verifiers")


def _check_environment(name: str) -> str:
    if name and name not in ENVIRONMENT_NAMES and ":" not in name:
        raise ValueError(
            f"expected one of {', '.join(ENVIRONMENT_NAMES)}, or package.module:Class for your own, got {name!r}"
            + suggest_spelling(name, ENVIRONMENT_NAMES)
        )
    return name


def _check_distinct(places: list[str]) -> list[str]:
    """Refuse a place that another one of the list contains: its records would be read twice."""
    paths = [(place, PurePath(place)) for place in places]
    for (inner, inner_path), (outer, outer_path) in permutations(paths, 2):
        if inner_path == outer_path:
            raise ValueError(f"'{inner}' is named twice: its records would count twice")
        if inner_path.is_relative_to(outer_path):
            raise ValueError(f"'{inner}' lies in '{outer}': its records would count twice")
    return places


Places = Annotated[list[str], AfterValidator(_check_distinct)]
"""Files, folders or urls, none within another."""


class DataConfig(StrictModel):
    """Where the tasks come from."""

    source: Annotated[str, AfterValidator(_check_source)] = "desk"
    """desk: the embedded world; toolbench: instruction files of ToolBench and StableToolBench; jsonl: files of your own
    tasks; recorded: the tasks of recorded trajectories; bfcl: the multi-turn tasks of the installed package bfcl-eval;
    environment: the tasks that the environment itself lists (docs/environments-of-others.md);
    path/to/file.py:Class or package.module:Class: a source of your own (docs/bring-your-own-data.md)."""
    paths: Places = Field(default_factory=list)
    """Files, folders or urls that the source reads. The sources desk and bfcl need none."""
    recorded_answers: Places = Field(default_factory=list)
    """Files, folders or urls of recorded trajectories, in any form: demonstrations for the warm start and responses for
    the replay environment. The source 'recorded' adds its own paths by itself."""
    environment: Annotated[str, AfterValidator(_check_environment)] = ""
    """The environment that executes the calls of tasks from files that name none; empty: replay. It also provides the
    tools for tasks and recordings that list none."""
    train_queries: Positive = 2400
    """Number of training queries. The desk draws exactly this many; any other source provides at most this many."""
    validation_queries: Positive = 200
    """Number of queries to tune settings on. Training never sees them."""
    heldout_queries: Positive = 400
    """Number of queries that the result is measured on. Training never sees them."""
    exact_splits: bool = True
    """How tasks that name no split are distributed. true: each split gets exactly the number above, or its proportion
    if there are fewer tasks. false: the text of a task alone decides, so that the task stays in its split whatever
    other tasks come and go. `workflows/retrain.py` always uses false."""
    first: list[str] = Field(default_factory=list)
    """SHA-256 digests of files. If the numbers above leave tasks or recordings out, those of these files are taken
    first. `workflows/retrain.py` lists the new files here."""
    keep_failing_solutions: bool = False
    """Whether a reference solution is used as a demonstration even if one of its calls fails. Ingest names each such
    solution."""
    long_share: Share = 0.5
    """Share of queries with several goals (desk only)."""

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.source == "recorded":
            try:
                _check_distinct([*self.paths, *self.recorded_answers])
            except ValueError as error:
                expected = "expected other recordings in recorded_answers than in paths"
                raise ValueError(f"{expected}, which the source 'recorded' reads already; {error}") from None
        return self


class McpConfig(StrictModel):
    """The server for the environment mcp: a command or a url (docs/tools/mcp.md)."""

    command: list[str] = Field(default_factory=list)
    """Program and arguments of a server that talks over its standard input and output."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the program, besides PATH, HOME and the like. ${NAME} stands for a variable of the run's
    own environment."""
    url: str = ""
    """Address of a server that talks streamable HTTP, in place of a command."""
    headers: dict[str, str] = Field(default_factory=dict)
    """Headers of every request to the url. ${NAME} stands for a variable of the run's own environment."""
    shared: bool = False
    """Whether all episodes share one process or connection. Otherwise each episode has its own."""


class ToolBenchConfig(StrictModel):
    """The tools of ToolBench for the environment toolbench: a server of the /virtual protocol, responses recorded
    earlier, or both (docs/tools/toolbench.md)."""

    url: str = ""
    """Address of the server, such as http://localhost:8080/virtual; empty: answers come from the cache alone."""
    key_variable: str = "TOOLBENCH_KEY"
    """Environment variable that holds the key for the server; it may be unset where the server needs none."""
    strip: Literal["", "truncate", "filter", "random"] = "truncate"
    """How the server shortens the answers of an API, in ToolBench's terms; StableToolBench's server ignores it."""
    cache: str = ""
    """File of recorded responses. It is read before the server is asked, and the server's answers are added to it;
    empty: no file. A file behind a url is only read."""


class ToolsConfig(StrictModel):
    """What executes the calls, and the limits on each call."""

    timeout: Seconds = 30.0
    """Seconds that a call may take, further attempts included. A call that takes longer is a failed step."""
    retries: Natural = 2
    """Number of further attempts after a transport error. Each waits twice as long as the one before."""
    concurrency: Positive = 32
    """Number of calls of different episodes that run at once, in an environment whose calls may block."""
    observation_limit: Positive = 8192
    """Largest number of characters of an observation. A longer one is cut and says so."""
    functions: str = ""
    """Python tools for the environment functions: package.module:name or path/to/file.py:name of a class, whose public
    methods are the tools, or of a list of functions (docs/tools/functions.md)."""
    isolation: Literal["thread", "process"] = "thread"
    """Where Python tools run. thread: in this process, fast, but a tool that hangs stays behind; process: each episode
    in a process of its own, which is ended when a call takes too long."""
    mcp: McpConfig = McpConfig()
    toolbench: ToolBenchConfig = ToolBenchConfig()
    settings: FreeMapping = Field(default_factory=dict)
    """Settings of the environments verifiers, openenv and nemo_gym, and of an environment class of your own that
    data.environment names: the keyword arguments that it is made with (docs/environments-of-others.md,
    docs/bring-your-own-tools.md)."""


Price = Annotated[float, Field(ge=0, le=1_000_000)]
"""The price of a million tokens."""


class EndpointConfig(StrictModel):
    """A chat model behind an HTTP endpoint of OpenAI's form."""

    base_url: str = ""
    """Address up to the version, such as https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: str = ""
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it may be unset where the server needs none."""
    concurrency: Positive = 16
    """Requests in flight at once."""
    timeout: Seconds = 60.0
    """Seconds that the server may stay silent. All attempts and the waits between them may take retries + 1 times as
    long."""
    retries: Natural = 4
    """Number of further attempts after a lost connection, an HTTP status 408, 409, 429 or 5xx, or an answer that is not
    a chat completion."""
    temperature: Annotated[float, Field(ge=0, le=HIGHEST_TEMPERATURE)] = 0.0
    """Sampling temperature."""
    max_tokens: Positive = 1024
    """Largest number of tokens in an answer."""
    request: FreeMapping = Field(default_factory=dict)
    """Further fields of every request. They replace fields of the same name; null removes a field. For a server that
    refuses max_tokens, write {max_tokens: null, max_completion_tokens: 1024}."""
    price_in: Price = 0.0
    """Price of a million input tokens, for the report of costs."""
    price_out: Price = 0.0
    """Price of a million output tokens, for the report of costs."""


class JudgeConfig(StrictModel):
    """The chat model that scores steps, judges outcomes and compares answers (docs/judge.md)."""

    endpoint: EndpointConfig = EndpointConfig()
    votes: Positive = 3
    """Number of answers that the judge gives for each trajectory. A score is their mean."""
    attempts: Positive = 3
    """Number of requests for one vote, as long as its answer cannot be used. After that the vote is missing."""
    deadline: Seconds = 3600.0
    """Seconds that all votes of a stage may take together. Votes that have not come by then are missing."""
    observation_limit: Positive = 2000
    """Largest number of characters that the judge sees of a call's arguments, of an observation and of an answer. A cut
    is marked."""
    cache: str = ""
    """File that keeps the judge's replies. A reply that is in it is not requested again, so that nothing is paid twice;
    empty: no file."""


class SearchConfig(StrictModel):
    """The tree search DFSDT (docs/search.md), as StepTool's evaluation runs it. Its depth is an episode's number of
    steps."""

    beam: Positive = 2
    """Largest number of turns made from one node; 1: a chain without branches. ToolLLM and StepTool evaluate with 2
    (DFS_woFilter_w2)."""
    max_turns: Positive = 30
    """Largest number of turns sampled in one search (max_query_count); ToolBench's own evaluation allows 200."""
    give_up_levels: Positive = 2
    """Number of turns that the search takes back when the model gives up (prune_back_length). After any other end of a
    path it takes back one."""
    hints: bool = True
    """Whether the model is told, as in ToolBench, what was tried before it makes another turn from a node. Such a
    message confuses small models; without it the search has to be sampled, because a greedy one repeats its turn."""


class EvaluatedPolicy(StrictModel):
    """One of the policies that workflows/evaluate.py compares."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name in the results and in the names of files."""
    kind: Literal["model", "endpoint", "playback"] = "model"
    """model: a causal language model; endpoint: a model behind an OpenAI-compatible endpoint; playback: no model; it
    plays the reference solution of each query, or the first recorded answer if there is no solution. With `recordings`
    it plays those."""
    model: str = ""
    """embedded, a model folder, the url of one or a Hugging Face id. It may be a LoRA adapter. For the kind endpoint:
    the folder or url of the model behind it. Its serving.json replaces instructions and endpoint.max_tokens
    (docs/serve.md); empty: there is no such file."""
    base: str = ""
    """The model that an adapter belongs to, named in the same way (kind model only); empty: the model that the adapter
    itself names."""
    endpoint: EndpointConfig = EndpointConfig()
    instructions: str | None = None
    """System message of an endpoint's episodes (kind endpoint only). Empty: no system message, as in the training of
    this package; null: a sentence that asks for one call in each turn and says how to answer."""
    cache: str = ""
    """File that keeps the endpoint's replies. A reply that is in it is not requested again, so that an evaluation that
    is started again pays for no turn twice (kind endpoint only); empty: no file."""
    recordings: Places = Field(default_factory=list)
    """Files, folders or urls of the recorded answers that this policy plays, in any form (kind playback only); empty:
    reference solutions and what `data.recorded_answers` holds."""
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
        if self.kind != "playback" and self.recordings:
            raise ValueError(f"the policy '{self.name}': recordings are for the kind playback only")
        if self.kind != "model" and self.base:
            raise ValueError(f"the policy '{self.name}': a base is for the kind model only")
        if self.kind != "model" and self.strategy != "chain":
            raise ValueError(f"the policy '{self.name}': the strategy {self.strategy} is for the kind model only")
        return self


class EvaluationConfig(StrictModel):
    """The comparison of models. Training compares base, warm start and result; workflows/evaluate.py compares any
    policies."""

    split: Literal["validation", "heldout", "all"] = "heldout"
    """Which queries are played. heldout: the held-out ones; validation: those to tune settings on, so that the held-out
    ones stay untouched; all: training queries too (workflows/evaluate.py only)."""
    sampled_repeats: Natural = 1
    """Sampled episodes per query besides the greedy one."""
    bootstrap: Annotated[int, Field(ge=40, le=1_000_000)] = 10000
    """Resamples of the paired bootstrap over queries, and draws of its permutation tests. Fewer than 40 have no 2.5%
    at either end of a 95% interval."""
    policies: list[EvaluatedPolicy] = Field(default_factory=list)
    """What workflows/evaluate.py compares (docs/evaluation.md); training ignores it."""
    recorded_only: bool = False
    """Whether to play only queries with a recorded answer (workflows/evaluate.py only)."""
    verdicts: Places = Field(default_factory=list)
    """Files or urls of a judge's stored verdicts on these policies, for the judged pass rate (docs/evaluation.md)."""
    judged: bool = False
    """Whether workflows/evaluate.py asks the judge of rewards.judge for a verdict on each greedy episode, and for the
    better answer of each two policies."""
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _require_distinct(self) -> EvaluationConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies need names of their own, got {names}")
        return self

    def require_policies(self) -> list[EvaluatedPolicy]:
        """The policies to compare. Raises ConfigError if none is named."""
        if not self.policies:
            raise ConfigError("evaluation.policies is empty: name the policies to compare (docs/evaluation.md)")
        return self.policies


class PromotionConfig(StrictModel):
    """When workflows/retrain.py puts a model in the place of the one in service (docs/retraining.md)."""

    min_gain: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The paired 95% interval of the gain in pass rate has to lie above this."""
    max_category_loss: Share = 0.05
    """Largest loss of pass rate that a category of tools may have. A loss that may be due to chance does not count."""
    max_invalid_rise: Share = 0.0
    """The paired 95% interval of the rise in the rate of invalid calls must not lie above this."""
    min_tasks: Positive = 30
    """Number of held-out tasks that a decision needs. With fewer, no model is promoted."""
    approval: bool = False
    """Whether a person is asked before a model is promoted."""
    approval_hours: Annotated[float, Field(gt=0, le=8760)] = 20.0
    """Hours to wait for the person's answer. After that the run fails."""
