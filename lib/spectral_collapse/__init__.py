"""Early warnings of collapse in recursively trained language models, measured."""

import os
import warnings

__version__ = "0.1.0"

# These must precede imports of torch, tokenizers and tqdm, so that they can stand nowhere else.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # the CPU does what Apple's MPS cannot
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads of tokenizers warn at every fork
warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm.auto looks for ipywidgets; our bars are text
