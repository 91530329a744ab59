"""Early warnings of collapse in recursively trained language models, measured."""

import os
import warnings

__version__ = "0.1.0"

# transformers imports tqdm.auto, which asks for ipywidgets in every notebook; progress bars here are text.
warnings.filterwarnings("ignore", message="IProgress not found")
# What Apple's MPS cannot do is done on the CPU; read when torch is imported.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
