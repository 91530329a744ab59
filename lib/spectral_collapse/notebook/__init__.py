"""Notebooks: pairs of .py and .ipynb, execution, kernels, and the run that notebooks 2 and 3 show."""
