"""Why a recursively trained model declines: what changes inside it, generation by generation.

gradients, landscape, drift, activations, eigenvectors and their tracking, outputs: the quantities, each on models or
plain arrays.
stages: what is measured of a generation and kept as a record; study: all runs of a profile as tables.
mediation: how much of the text's change goes along with each quantity; report: tables and numbers for the paper.
"""

from .mediation import mediation
from .study import QUANTITIES, Study, committed, measured, read, write

__all__ = ["QUANTITIES", "Study", "committed", "measured", "mediation", "read", "write"]
