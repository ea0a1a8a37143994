"""ETO (Song et al. 2024, arXiv 2403.02502): DPO on pairs of a better and a worse try at the same query.

    L = mean over pairs of -log sigmoid(beta * (d_better - d_worse)),    d = log pi(tau) - log pi_ref(tau)

log pi(tau) sums over the tokens that the policy sampled, observations left out. The reference is the policy at the
round's start, whose tries are compared: each round is one iteration of exploration and learning.

TRL's DPOTrainer computes the log-probabilities and the loss, and makes the optimizer steps. From the round it takes the
tokens as they were sampled, a mask that leaves the observations out, the log-probabilities of the reference, the
temperature of the rollouts, the optimizer, whose moments go on from round to round, and the checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from steptool.config import Config
from steptool.models.actor import CHECKPOINTING, Actor, Indices, Spanned, find_action_places
from steptool.models.logprobs import unwrap_model
from steptool.models.packed_attention import VARIABLE_LENGTH
from steptool.records import Advantage, Metric, StepReward, Trajectory
from steptool.rewards.compose import RunningScale
from steptool.training.algorithms.base import Algorithm, Selection
from steptool.training.processes import draw_equal_steps, get_processes
from steptool.training.scores import Scores
from steptool.training.trainer import CheckpointFolder, Figures, check_finite

Pair = tuple[Trajectory, Trajectory]
"""The better and the worse trajectory of a query."""
Row = dict[str, list[Any]]
"""What TRL's trainer reads of a pair."""


class ExplorationPreference(Algorithm):
    """Each step takes half as many pairs as StepPPO takes trajectories, and so as many sequences."""

    stage = "eto"
    needs_scores = True

    def __init__(self, config: Config, round_index: int) -> None:
        super().__init__(config, round_index)
        self.references: list[float] = []
        """log pi_ref of each trajectory: the sum over its action tokens (nats)."""

    @property
    def pairs_per_pass(self) -> int:
        """Pairs in a forward pass on one process, at most."""
        return max(1, self.config.ppo.micro_batch_size // 2)

    def select(
        self, trajectories: Sequence[Trajectory], rewards: Sequence[StepReward], scale: RunningScale
    ) -> Selection:
        """The pairs of all queries, the better one of each first. Its reward is IsSolved of its last step."""
        outcomes = {reward.trajectory_id: reward.is_solved for reward in rewards if reward.is_solved is not None}
        tries: dict[str, list[Trajectory]] = defaultdict(list)
        for t in trajectories:
            if t.spans and t.trajectory_id in outcomes:
                tries[t.query_id].append(t)
        pairs = [pair for group in tries.values() for pair in _pair(group, outcomes)]
        selection = [t for pair in pairs for t in pair]
        left_out = len(trajectories) - len({t.trajectory_id for t in selection})
        number = Metric(self.stage, self.round_index, 0, "pairs_of_tries", float(len(pairs)))
        note = f"round {self.round_index}: no query has a better and a worse try among {len(trajectories)} trajectories"
        return Selection(selection, left_out, scale=scale, metrics=[number], note=note)

    def steps(self, lengths: Indices) -> list[Indices]:
        """Shuffled passes over the pairs."""
        ppo = self.config.ppo
        return draw_equal_steps(len(lengths), max(1, ppo.batch_size // 2), self.pairs_per_pass, ppo.epochs, self.seed)

    def prepare(self, selection: Selection, scores: Scores, device: torch.device) -> list[Advantage]:
        """Keep the log-probabilities at the round's start; there are no advantages."""
        ends = np.cumsum([t.action_tokens for t in selection.trajectories])
        self.references = [float(part.sum()) for part in np.split(scores.log_probs_N.astype(np.float64), ends[:-1])]
        return []


def _pair(tries: Sequence[Trajectory], outcomes: Mapping[str, float]) -> Iterator[Pair]:
    """Each of the best tries with a worse one, and each worse one with one of the best."""
    best = max(outcomes[t.trajectory_id] for t in tries)
    better = [t for t in tries if outcomes[t.trajectory_id] == best]
    worse = [t for t in tries if outcomes[t.trajectory_id] < best]
    count = max(len(better), len(worse)) if worse else 0
    yield from islice(zip(cycle(better), cycle(worse), strict=False), count)


class PreferenceTrainer:
    """Trains a model on pairs of sequences, the better one of each first."""

    def __init__(
        self,
        actor: Actor,
        optimizer: torch.optim.Optimizer,
        algorithm: ExplorationPreference,
        sequences: Sequence[Spanned],
        tokenizer: PreTrainedTokenizerBase,
        checkpoints: CheckpointFolder | None = None,
    ) -> None:
        self.actor = actor
        self.optimizer = optimizer
        self.algorithm = algorithm
        references, pairs = algorithm.references, range(0, len(sequences), 2)
        self.rows = [_make_row(sequences[i : i + 2], references[i : i + 2]) for i in pairs]
        self.tokenizer = tokenizer
        self.checkpoints = checkpoints
        self.lengths = np.array([sum(map(len, row["input_ids"])) for row in self.rows], dtype=np.int64)
        self.action_tokens = np.array([sum(map(sum, row["masks"])) for row in self.rows], dtype=np.int64)

    def train(self, steps: Sequence[Indices]) -> list[Figures]:
        """Make optimizer steps of the same size, each on the pairs that it names; returns the figures of every step.

        After an interruption it goes on from the last complete checkpoint. Raises DivergedError, and ImportError
        where TRL is not installed.
        """
        log = self.checkpoints.restore(self.actor, self.optimizer) if self.checkpoints else []
        remaining = steps[len(log) :]
        if remaining:
            with TemporaryDirectory() as folder, _lend(self.actor.policy) as model:
                trainer = self._make_trainer(model, np.concatenate(remaining), len(remaining[0]), folder)
                trainer.add_callback(_OnLog(lambda logs: self._record(logs, log, len(steps))))
                trainer.train()
        return log

    def _make_trainer(self, model: PreTrainedModel, order: Indices, step_size: int, folder: str) -> Any:
        try:
            from datasets import Dataset
            from trl import DPOConfig, DPOTrainer
            from trl.trainer.utils import add_fused_lm_head
        except ImportError as error:
            raise ImportError(
                f"ppo.algorithm: eto trains through TRL's DPOTrainer, which cannot be imported ({error}); install "
                "trl==1.16.0, or choose another algorithm"
            ) from error

        class TokenTrainer(DPOTrainer):  # type: ignore[misc]
            """Takes the tokens and the reference's log-probabilities as they are in the data."""

            def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
                return dataset

            def _precompute_ref_logps(self, dataset: Dataset, *_: object) -> Dataset:
                return dataset

        algorithm, ppo, share = self.algorithm, self.algorithm.config.ppo, step_size // get_processes().num_processes
        pass_size = max(size for size in range(1, algorithm.pairs_per_pass + 1) if share % size == 0)
        on_cpu, mixed = not torch.cuda.is_available(), model.dtype == torch.bfloat16 and model is not self.actor.policy
        config = DPOConfig(
            folder, beta=ppo.dpo_beta, seed=algorithm.seed, max_grad_norm=ppo.max_grad_norm, max_length=None,
            num_train_epochs=1, train_sampling_strategy="sequential", remove_unused_columns=False,
            per_device_train_batch_size=pass_size, gradient_accumulation_steps=share // pass_size,
            precompute_ref_log_probs=True, ddp_find_unused_parameters=False, **{CHECKPOINTING: False},
            bf16=mixed, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu, logging_steps=1,
            logging_nan_inf_filter=False, save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        config._n_gpu = min(config.n_gpu, 1)  # else one process would spread its pairs over all GPUs that it sees
        constant = LambdaLR(self.optimizer, lambda step: 1.0)
        trainer = TokenTrainer(
            model, args=config, train_dataset=Dataset.from_list([self.rows[i] for i in order]),
            data_collator=collate_pairs, processing_class=self.tokenizer, optimizers=(self.optimizer, constant),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        # TRL has put its head for log-probabilities at temperature 1 on the model; this one takes its place
        add_fused_lm_head(model, algorithm.temperature, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        return trainer

    def _record(self, logs: Mapping[str, float], log: list[Figures], steps: int) -> None:
        """Keep the figures of an optimizer step that was made, and a checkpoint where one is due."""
        figures = {name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm")}
        check_finite(len(log), figures)
        figures["margin"] = logs["rewards/margins"] / self.algorithm.config.ppo.dpo_beta
        figures["preferred"] = logs["rewards/accuracies"]
        log.append(figures)
        if self.checkpoints and self.checkpoints.is_due(len(log), steps):
            self.checkpoints.save(self.actor, self.optimizer, log)


def collate_pairs(rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch as DPOTrainer reads it: the better sequences, then the worse ones, padded on the right."""
    sides = [(row, side) for side in (0, 1) for row in rows]
    input_ids = [torch.tensor(row["input_ids"][side]) for row, side in sides]
    masks = [torch.tensor(row["masks"][side]) for row, side in sides]
    better_P, worse_P = torch.tensor([row["references"] for row in rows]).T
    return {
        "input_ids": pad_sequence(input_ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in input_ids], batch_first=True),
        "completion_mask": pad_sequence(masks, batch_first=True),
        "ref_chosen_logps": better_P,
        "ref_rejected_logps": worse_P,
    }


def _make_row(pair: Sequence[Spanned], references: Sequence[float]) -> Row:
    """The tokens of both sequences, 1 where a token is the policy's own, and log pi_ref."""
    masks = [np.isin(np.arange(len(sequence.input_ids)), find_action_places(sequence)).astype(int) for sequence in pair]
    return {
        "input_ids": [list(map(int, sequence.input_ids)) for sequence in pair],
        "masks": [mask.tolist() for mask in masks],
        "references": list(references),
    }


@contextmanager
def _lend(policy: torch.nn.Module) -> Iterator[PreTrainedModel]:
    """The model inside a policy, with attention for padded sequences. What TRL sets on it besides the weights, and the
    attention, are as before when the context ends.
    """
    model = unwrap_model(policy)
    attention = model.config._attn_implementation
    if attention == VARIABLE_LENGTH:
        model.set_attn_implementation("sdpa")
    former_settings = [(part, dict(vars(part))) for part in (model.config, model.generation_config)]
    attributes = set(vars(model))
    try:
        yield model
    finally:
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        for part, values in former_settings:
            vars(part).clear()
            vars(part).update(values)
        model.set_attn_implementation(attention)
        policy.eval()


class _OnLog(TrainerCallback):  # type: ignore[misc]
    """Hands over the figures of each optimizer step."""

    def __init__(self, record: Callable[[Mapping[str, float]], None]) -> None:
        self._record = record

    def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
        """Called after each step and, without a loss, at the end."""
        if "loss" in logs:
            self._record(logs)
