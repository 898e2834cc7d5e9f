"""What can be said of a job's training settings before any training, without torch."""

from __future__ import annotations

import logging
from typing import Literal

from nord_hpc.errors import BadInput
from nord_hpc.job import Job
from nord_hpc.training import metrics, optimizers

logger = logging.getLogger(__name__)


def check_job(job: Job) -> None:
    """Refuse settings that no training can follow.

    Raises:
        BadInput: one line with the field and what to set.
    """
    optimizers.check(job.training.optimizer)
    metrics.check_name(job.objective.metric)
    check_sync_batch_norm(enabled=job.training.sync_batch_norm, reduction=job.resources.reduction)
    if metrics.greater_is_better(job.objective.metric) != (job.objective.direction == "maximize"):
        logger.warning("objective: the search will %s %s", job.objective.direction, job.objective.metric)


def check_sync_batch_norm(*, enabled: bool, reduction: Literal["auto", "exact", "fast"]) -> None:
    """Refuse statistics over the whole batch where its parts are trained one after the other."""
    if enabled and reduction == "exact":
        raise BadInput(
            "training.sync_batch_norm: needs all parts of a batch at once, and resources.reduction exact trains them "
            "one after the other; set resources.reduction to fast, or training.sync_batch_norm to false"
        )
