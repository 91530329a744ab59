"""A Trainer on four of 32 tokens, which forgets the others; `torchrun tests/helpers/watched.py FOLDER` watches it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from spectral_collapse.monitor import Monitor
from spectral_collapse.monitor.callback import MonitorCallback
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

HELD_OUT = torch.randint(0, 32, (16, 8), generator=torch.Generator().manual_seed(2))


def trainer(folder: Path, adapt: Callable | None = None, **options) -> Trainer:
    """Six steps at a high rate, unless the options say otherwise; `adapt` changes the model before."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    rows = torch.randint(0, 4, (32, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in rows]
    chosen = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.1, "report_to": "none"}
    chosen |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 2, "save_strategy": "no", "seed": 1}
    arguments = TrainingArguments(output_dir=str(folder), **(chosen | options))
    adapted = model if adapt is None else adapt(model)
    return Trainer(model=adapted, args=arguments, train_dataset=data, eval_dataset=data[:8])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run = trainer(folder / "run", max_steps=40)
    callback = MonitorCallback(Monitor(blocks=HELD_OUT), every=2, stop=True).attach(run)
    run.train()
    found = {"step": run.state.global_step, "status": callback.report.status}
    (folder / f"rank_{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
