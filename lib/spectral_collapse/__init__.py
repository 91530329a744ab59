"""Early warnings of collapse in recursively trained language models, measured."""

__version__ = "0.1.0"
