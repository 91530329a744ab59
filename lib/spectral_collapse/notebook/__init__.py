"""Notebooks: their two halves, their execution, their kernels."""
