"""Robustness that can be believed: attacks, evaluation, masking audit, adversarial training.

The public names are loaded on first use, so that importing the package does not load TensorFlow.
"""

from typing import TYPE_CHECKING

from tfdq._first_use import loaded_on_first_use

if TYPE_CHECKING:
    from tfdq.robustness.adversarial_training import AdversarialTraining
    from tfdq.robustness.amplification import ErrorAmplification, error_amplification
    from tfdq.robustness.attacks import (
        AttackCost,
        AttackResult,
        AttackTask,
        attack,
        attack_suites,
        available_attacks,
        register_attack,
        run_attack,
        smooth_surrogate,
    )
    from tfdq.robustness.catastrophic_overfitting import CatastrophicOverfittingMonitor
    from tfdq.robustness.evaluation import evaluate
    from tfdq.robustness.masking import AuditThresholds, MaskingAudit, audit
    from tfdq.robustness.overfitting_watch import (
        CatastrophicOverfittingWarning,
        GradientMaskingWarning,
    )
    from tfdq.robustness.report import RobustnessReport
    from tfdq.robustness.squeezing import BitDepthSqueeze, MedianSqueeze, squeeze
    from tfdq.robustness.targets import Target, as_target
    from tfdq.robustness.transfer import TransferMatrix, transfer_matrix

_HOME = {
    "AdversarialTraining": "tfdq.robustness.either_training",
    "AttackCost": "tfdq.robustness.attacks",
    "AttackResult": "tfdq.robustness.attacks",
    "AttackTask": "tfdq.robustness.attacks",
    "AuditThresholds": "tfdq.robustness.masking",
    "BitDepthSqueeze": "tfdq.robustness.squeezing",
    "CatastrophicOverfittingMonitor": "tfdq.robustness.catastrophic_overfitting",
    "CatastrophicOverfittingWarning": "tfdq.robustness.overfitting_watch",
    "CorruptionReport": "tfdq.robustness.corruptions",
    "ErrorAmplification": "tfdq.robustness.amplification",
    "GradientMaskingWarning": "tfdq.robustness.overfitting_watch",
    "MaskingAudit": "tfdq.robustness.masking",
    "MedianSqueeze": "tfdq.robustness.squeezing",
    "RobustnessReport": "tfdq.robustness.report",
    "Target": "tfdq.robustness.targets",
    "TransferMatrix": "tfdq.robustness.transfer",
    "as_target": "tfdq.robustness.targets",
    "attack": "tfdq.robustness.attacks",
    "attack_suites": "tfdq.robustness.attacks",
    "audit": "tfdq.robustness.masking",
    "available_attacks": "tfdq.robustness.attacks",
    "corrupt": "tfdq.robustness.corruptions",
    "corruption_accuracy": "tfdq.robustness.corruptions",
    "error_amplification": "tfdq.robustness.amplification",
    "evaluate": "tfdq.robustness.evaluation",
    "register_attack": "tfdq.robustness.attacks",
    "run_attack": "tfdq.robustness.attacks",
    "smooth_surrogate": "tfdq.robustness.attacks",
    "squeeze": "tfdq.robustness.squeezing",
    "transfer_matrix": "tfdq.robustness.transfer",
}

__all__ = [
    "AdversarialTraining",
    "AttackCost",
    "AttackResult",
    "AttackTask",
    "AuditThresholds",
    "BitDepthSqueeze",
    "CatastrophicOverfittingMonitor",
    "CatastrophicOverfittingWarning",
    "CorruptionReport",
    "ErrorAmplification",
    "GradientMaskingWarning",
    "MaskingAudit",
    "MedianSqueeze",
    "RobustnessReport",
    "Target",
    "TransferMatrix",
    "as_target",
    "attack",
    "attack_suites",
    "audit",
    "available_attacks",
    "corrupt",
    "corruption_accuracy",
    "error_amplification",
    "evaluate",
    "register_attack",
    "run_attack",
    "smooth_surrogate",
    "squeeze",
    "transfer_matrix",
]

__getattr__, __dir__ = loaded_on_first_use(__name__, _HOME)
