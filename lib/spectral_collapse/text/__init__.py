"""Text: corpora, tokenizers, the sentence encoder, prompts, and metrics of text."""
