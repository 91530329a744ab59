"""Tokenizers, trained on a corpus or of a checkpoint."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import trainers as tokenizer_trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..record import provenance
from ..record.schema import Params
from .checkpoints import from_checkpoint

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: list[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token, END_OF_TEXT (id 0), which separates documents."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's vocabulary and of its tokens for a fixed text."""
    probe = tokenizer("Once upon a time, 3 tiny naïve foxes\n\tran home!", add_special_tokens=False).input_ids
    return provenance.text_hash(provenance.canonical([tokenizer.get_vocab(), probe]))


def load_tokenizer(params: Params) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer."""
    tokenizer = from_checkpoint(AutoTokenizer, params)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {params.checkpoint!r} has no end-of-text token to separate documents with.")
    return tokenizer
