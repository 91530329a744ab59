# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 The monitor: is my own training run collapsing?
#
# A run like a user's, with a model and a text that the rest of the project does not use: a small GPT-2 learns the
# documentation that comes with Python, in a `transformers.Trainer`. Then it goes on learning from its own samples, as
# happens when training data contain a model's output. The monitor is one line of code; does it notice?
#
# *It trains for a minute or two and reads no runs, not even those of `smoke`; the confirmatory study is
# shown in notebook 8, the exploratory one in notebook 7.*

# %%
from spectral_collapse.record import params

# %% tags=["parameters"]
profile = "smoke"  # not used here; every notebook takes one

# %%
settings = params.collect(globals())

# %%
import itertools
import tempfile
from pydoc_data import topics

import torch
from spectral_collapse.monitor import Monitor
from spectral_collapse.monitor.callback import MonitorCallback
from spectral_collapse.text import tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

set_seed(1)
torch.set_num_threads(2)
logging.disable_progress_bar(), logging.set_verbosity_error()
pages = [" ".join(page.split()) for page in topics.topics.values()]
tokenizer = tokenizers.train_tokenizer(pages, 512)
stream = list(itertools.chain.from_iterable(tokenizer(pages, verbose=False).input_ids))
blocks = torch.tensor(stream[: len(stream) // 64 * 64]).view(-1, 64)
held_out, real = blocks[::20][:64], blocks[torch.arange(len(blocks)) % 20 != 0][:512]
size = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0}
model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size))
print(f"{model.num_parameters():,} parameters; {len(real)} blocks to learn, {len(held_out)} held out")

# %% [markdown]
# ## A run on real text, then on its own
#
# `sample` is what a user would write: sixty texts of the model, from the same beginnings each time. The first round
# ends with real text; its model is the reference.


# %%
def sample(net, count=60):
    """Continuations of the first eight tokens of real blocks."""
    net.eval()
    drawn = net.generate(real[:count, :8], do_sample=True, top_k=0, top_p=0.9, max_length=64, pad_token_id=0)
    return tokenizer.batch_decode(drawn, skip_special_tokens=True), drawn


def train(text, callbacks=(), epochs=1):
    """One round of training on blocks, as any Trainer script does it."""
    options = {"num_train_epochs": epochs, "per_device_train_batch_size": 16, "learning_rate": 2e-3, "use_cpu": True}
    quiet = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(output_dir=tempfile.mkdtemp(), **options, **quiet)
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in text])
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        callback.attach(trainer)
    trainer.train()
    return trainer


train(real, epochs=5)
print(sample(model, 1)[0][0])

# %%
monitor = Monitor(blocks=held_out)
monitor.check(model=model, texts=sample(model)[0], step=0)
for round_ in range(1, 4):
    own = torch.cat([sample(model)[1] for _ in range(3)])
    train(own, epochs=2)
    print(monitor.check(model=model, texts=sample(model)[0], step=round_).line())

# %% tags=["nbval-check-output"]
report = monitor.report()
print("checks:", report.frame["check"].max(), " status:", report.status)

# %% [markdown]
# ## What it saw
#
# Changes from the reference with 95 % intervals; dashed is the change at which a signal alarms, so that a run without
# any effect raises an alarm with a probability of 5 % over all signals and all its checks, however many.
# `report.save("report.html")` writes the same as one page that needs no network.
#
# It alarms at the first step. There is no control run here, so the alarm says that the model has changed and not why:
# give `controls=` in a run of your own (`docs/monitor.md`).

# %%
report.plot()

# %%
report.to_frame().tail(6).drop(columns=["check", "boundary"]).style.format(precision=3).hide()

# %% [markdown]
# ## The same inside a Trainer
#
# With the callback checks come at the start, at every evaluation and at the end, here also every ten steps, and their
# metrics go through the trainer's own log, to every tracker that it reports to. One more round on the model's own text.

# %%
callback = MonitorCallback(Monitor(blocks=held_out), every=10)
trainer = train(own, [callback])
logged = [entry for entry in trainer.state.log_history if "collapse/held_out_loss" in entry]
print(f"{len(logged)} checks in the trainer's log; {callback.report.line()}")
