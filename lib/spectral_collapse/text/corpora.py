"""Real text from storyworld, the hub or a file, tokenised and cut into disjoint parts."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..estimate import generator, stable_seed
from ..record import provenance
from ..record.schema import Params, Watched
from . import hub, storyworld, tokenizers

TINYSTORIES = "roneneldan/TinyStories"
TINYSTORIES_REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
ENCODED = 10_000  # documents tokenised at a time


@dataclass(frozen=True)
class Corpus:
    """Documents of the training and of the held-out split."""

    train: list[str]
    held_out: list[str]


def _lines_of_json(path: Path, text: str) -> list[str]:
    """The documents of JSONL text; ValueError that names a line without one."""
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            document = value if isinstance(value, str) else value["text"]
            document.encode()  # refuses lone surrogates
            if "\0" in document:
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(
                f"data file {path}, line {number}: a document is a line of JSON, "
                '{"text": "…"} or "…" (other files than .jsonl are read as plain text).'
            ) from None
        documents.append(document)
    return documents


def read_documents(path: Path) -> list[str]:
    """Documents of a UTF-8 text file, separated by END_OF_TEXT or else by blank lines.

    In a .jsonl file every line is one: a JSON object with the key `text`, or a JSON string. ValueError, with the full
    path, if the file cannot be read.
    """
    path = path.expanduser().absolute()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"data file {path} does not exist: set data_path to a text file of your own.") from None
    except OSError:
        raise ValueError(f"data file {path} cannot be read: set data_path to a readable text file.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"data file {path} is not UTF-8 text (byte {error.start}): convert it first.") from None
    if (place := text.find("\0")) >= 0:  # valid UTF-8, but a sign of UTF-16 or a binary file
        line = text.count("\n", 0, place) + 1
        raise ValueError(f"data file {path} holds a NUL in line {line}, as no text does: convert it first.")
    if path.suffix == ".jsonl":
        documents = _lines_of_json(path, text)
    else:
        documents = text.split(tokenizers.END_OF_TEXT if tokenizers.END_OF_TEXT in text else "\n\n")
    documents = [document.strip() for document in documents if document.strip()]
    if not documents:
        raise ValueError(f"data file {path} is empty: set data_path to a file with text in it.")
    return documents


def _first_texts(files: list[Path], count: int) -> list[str]:
    """The column `text` of parquet files, its first `count` entries."""
    import datasets  # slow to import

    names = [str(file) for file in files]
    return list(datasets.load_dataset("parquet", data_files=names, columns=["text"], split=f"train[:{count}]")["text"])


def _tinystories_from_hub(count: int) -> Corpus:
    splits = {"train": count, "validation": max(1, count // 10)}
    try:
        folder = hub.snapshot(
            TINYSTORIES, TINYSTORIES_REVISION, [f"data/{name}-*.parquet" for name in splits], "dataset"
        )
    except ValueError as error:
        raise ValueError(
            f"TinyStories could not be read from the hub ({error}): connect this machine; or name a text file of yours "
            "with -p data_path stories.txt; or take the profile default, which needs no hub."
        ) from None
    return Corpus(*(_first_texts(sorted(folder.glob(f"data/{name}-*")), limit) for name, limit in splits.items()))


def load_corpus(params: Params) -> Corpus:
    """The profile's real text. ValueError if there is none."""
    if params.corpus == "storyworld":
        return Corpus(
            storyworld.generate_stories(params.documents, stable_seed("storyworld", "train")),
            storyworld.generate_stories(max(1, params.documents // 10), stable_seed("storyworld", "held out")),
        )
    if params.data_path is None:
        return _tinystories_from_hub(params.documents)
    train = read_documents(Path(params.data_path))
    if params.held_out_path is not None:
        return Corpus(train[: params.documents], read_documents(Path(params.held_out_path)))
    if len(train) < 10:
        raise ValueError(
            f"data file {params.data_path} has {len(train)} documents, too few to set a tenth aside: "
            f"separate documents with {tokenizers.END_OF_TEXT} or blank lines, or set held_out_path."
        )
    cut = len(train) - len(train) // 10
    return Corpus(train[:cut][: params.documents], train[cut:])


class RealText:
    """Tokenised real text of a profile, in parts that do not overlap within a seed.

    The training stream of a seed is its shuffled documents, each preceded by the end-of-text token: first the base
    model's sequences, then slice 0 (contexts, `static`, real part of `mixed`), then slices 1, 2, … (`fresh`). The
    held-out blocks are the same for all seeds and conditions.
    """

    def __init__(self, params: Params):
        self.params = params
        self._reads: dict[str, Any] = {}  # parameters read by the current part
        self._watched = params = Watched(params, lambda name, value: self._reads.update({name: value}))
        self._digests: dict[str, tuple[str, dict[str, Any]]] = {}
        corpus = load_corpus(params)
        if params.checkpoint is None:
            self.tokenizer: PreTrainedTokenizerBase = tokenizers.train_tokenizer(corpus.train, params.vocabulary_size)
        else:
            self.tokenizer = tokenizers.load_tokenizer(params)
        self.separator: int = self.tokenizer.eos_token_id
        self._train = self._encode(corpus.train)
        held_out = self._stream(self._encode(corpus.held_out), range(len(corpus.held_out)))
        self.held_out = self._blocks(held_out, 0, params.held_out_blocks, params.block_tokens, "held-out text")
        self.sha256 = provenance.text_hash(
            provenance.canonical([corpus.train, corpus.held_out, tokenizers.tokenizer_hash(self.tokenizer)])
        )
        self._read_at_first = dict(self._reads)

    def part(self, name: str, seed: int) -> tuple[Any, str, dict[str, Any]]:
        """A part of the text by name (`held_out`, `separator`, `tokenizer`, `openings`, `baseline`, `slice 3`) for a
        seed, its hash, and the parameters that it depends on."""
        attribute, *index = name.split()
        self._reads = dict(self._read_at_first)
        found = getattr(self, attribute)
        if callable(found) and attribute != "tokenizer":
            found = found(seed, *map(int, index))
        if (key := f"{seed} {name}") not in self._digests:
            digest = tokenizers.tokenizer_hash(found) if attribute == "tokenizer" else provenance.digest(found)
            self._digests[key] = digest, self._reads
        return found, *self._digests[key]

    def _encode(self, documents: list[str]) -> list[np.ndarray]:
        """Token ids of every document; in batches, since the tokenizer uses a hundred bytes a token."""
        parts = (documents[start : start + ENCODED] for start in range(0, len(documents), ENCODED))
        encoded = (self.tokenizer(part, add_special_tokens=False, verbose=False).input_ids for part in parts)
        return [np.asarray(ids, dtype=np.int32) for part in encoded for ids in part]

    def _stream(self, documents: list[np.ndarray], order) -> np.ndarray:
        separator = np.asarray([self.separator], dtype=np.int32)
        return np.concatenate([part for i in order for part in (separator, documents[i])])

    @functools.lru_cache(maxsize=2)  # noqa: B019  (one RealText a process)
    def _shuffled(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        order = generator(seed, "documents").permutation(len(self._train))
        return self._stream(self._train, order), order

    def _blocks(self, stream: np.ndarray, start: int, count: int, length: int, what: str) -> torch.Tensor:
        stop = start + count * length
        if stop > len(stream):
            raise ValueError(
                f"{what}: {stop:,} tokens are needed and the corpus has {len(stream):,}: "
                "give more text (documents, data_path) or lower baseline_blocks, blocks_per_generation, "
                "held_out_blocks or generations."
            )
        return torch.from_numpy(stream[start:stop]).view(count, length).long()

    def baseline(self, seed: int) -> torch.Tensor:
        """Training sequences of the base model, shape (N, baseline_sequence_tokens)."""
        params = self._watched
        tokens, length = params.base_training[0] * params.block_tokens, params.baseline_sequence_tokens
        return self._blocks(self._shuffled(seed)[0], 0, tokens // length, length, "base model's text")

    def slice(self, seed: int, index: int) -> torch.Tensor:
        """Real slice `index` (0: contexts), shape (blocks_per_generation, block_tokens)."""
        params = self._watched
        start = (params.base_training[0] + index * params.blocks_per_generation) * params.block_tokens
        return self._blocks(
            self._shuffled(seed)[0],
            start,
            params.blocks_per_generation,
            params.block_tokens,
            f"real slice {index}",
        )

    def openings(self, seed: int) -> list[list[int]]:
        """End-of-text token and first tokens of a document, one for each block of a generation.

        Documents come from the end of the shuffled order, which the base model's sequences reach last.
        """
        params, order = self._watched, self._shuffled(seed)[1]
        long_enough = [i for i in reversed(order) if len(self._train[i]) >= params.opening_tokens - 1]
        if not long_enough:
            raise ValueError(f"no document has {params.opening_tokens} tokens: lower opening_tokens.")
        chosen = (long_enough[i % len(long_enough)] for i in range(params.blocks_per_generation))
        return [[self.separator, *self._train[i][: params.opening_tokens - 1].tolist()] for i in chosen]
