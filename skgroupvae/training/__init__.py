"""How a model learns: objectives of a step, the loop over epochs, and what happens between them."""

from skgroupvae.training.callbacks import (
    Callback,
    EarlyStopping,
    History,
    Interrupt,
    Progress,
    Trials,
    is_worse,
)
from skgroupvae.training.loop import (
    HISTORY_TERMS,
    TrainingSettings,
    history_table,
    resolve_schedule,
    train,
)

__all__ = [
    "HISTORY_TERMS",
    "Callback",
    "EarlyStopping",
    "History",
    "Interrupt",
    "Progress",
    "TrainingSettings",
    "Trials",
    "history_table",
    "is_worse",
    "resolve_schedule",
    "train",
]
