"""Corpora, tokenizers, checkpoints, prompts, the sentence encoder, and metrics of text."""
