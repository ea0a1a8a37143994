"""Thresholds on the figures of an audit: rewards beyond them are not learned from."""

from __future__ import annotations

from collections.abc import Iterator

from steptool.config import AuditConfig
from steptool.rewards.audit import Audit


class AuditError(ValueError):
    """Rewards that the thresholds of `rewards.audit` refuse."""


def check(found: Audit, config: AuditConfig, where: str) -> None:
    """Raise AuditError naming every figure that is beyond its threshold. A figure that is not defined passes."""
    faults = list(_faults(found, config))
    if faults:
        said = "\n  ".join(
            [f"{where}: the rewards by '{found.annotator}' were refused, and PPO did not start", *faults]
        )
        raise AuditError(said)


def _faults(found: Audit, config: AuditConfig) -> Iterator[str]:
    if found.left_out > config.max_missing:
        shares = ", ".join(f"{share:.3f} of {name}" for name, share in found.missing.items() if share)
        yield (
            f"missing scores: {found.left_out:.3f} of the episodes cannot be learned from, above "
            f"rewards.audit.max_missing {config.max_missing} (missing: {shares}); ask the annotator again for what it "
            "left out, or take another one"
        )
    area, agreed, tied = found.contribution_auroc(), found.contribution_kappa(), found.farming[0].correlation
    if area and area.value < config.min_auroc:
        yield (
            f"separation: the mean Contribution ranks a solved above an unsolved episode in {area.value:.3f} of the "
            f"pairs, below rewards.audit.min_auroc {config.min_auroc}; see the disputed steps and the tools in the "
            "reward report, and take another annotator or mend its rules"
        )
    if agreed and agreed.value < config.min_kappa:
        yield (
            f"agreement: kappa {agreed.value:.3f} with '{found.others[0]}' on Contribution is below "
            f"rewards.audit.min_kappa {config.min_kappa}; see the disputed steps in the reward report"
        )
    if tied and tied.value > config.max_farming:
        yield (
            f"farming: the correlation of the step rewards with the number of steps is {tied.value:.3f}, above "
            f"rewards.audit.max_farming {config.max_farming}; lower rewards.step_weight, or set "
            "rewards.succ_calling: penalty or rewards.normalisation: trajectory"
        )
