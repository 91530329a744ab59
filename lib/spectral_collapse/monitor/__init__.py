"""Warnings of collapse for people who train their own models: a reference, checks at a stated rate of false alarms.

`Monitor` judges texts, models or tables of metrics; `callback.MonitorCallback` puts it into a `transformers.Trainer`;
`watch` is the command. Texts and tables need no torch.
"""

from .core import Monitor
from .decision import Rule
from .readings import SIGNALS, of_embeddings, of_texts
from .report import Report

__all__ = ["SIGNALS", "Monitor", "Report", "Rule", "of_embeddings", "of_texts"]
