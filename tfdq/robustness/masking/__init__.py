"""The gradient-masking audit: does a robust accuracy mean anything?"""

from tfdq.robustness.masking.audit import audit
from tfdq.robustness.masking.verdict import AuditThresholds, Check, MaskingAudit

__all__ = ["AuditThresholds", "Check", "MaskingAudit", "audit"]
