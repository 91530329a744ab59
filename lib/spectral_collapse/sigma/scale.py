"""SIGMA at any size: Gram matrices of streams of embeddings, and of partitions on many workers."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.dataset

from .gram import GramAccumulator

ROWS = 8192  # read at a time


def read_embeddings(paths: Sequence[Path | str] | Path | str, column: str = "embedding") -> Iterator[np.ndarray]:
    """Chunks (≤ 8,192, m) of a column of equally long lists, from parquet or arrow files, read one after the other.

    The format follows the suffix: .parquet, otherwise arrow (IPC, feather). ValueError, with the file, for a
    missing column, a missing row and lists of unequal length.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    for path in map(Path, paths):
        dataset = pyarrow.dataset.dataset(path, format="parquet" if path.suffix == ".parquet" else "ipc")
        if column not in dataset.schema.names:
            raise ValueError(f"{path} has no column {column!r}; it has {', '.join(dataset.schema.names)}.")
        # Without read-ahead the memory is that of one batch.
        for batch in dataset.to_batches(columns=[column], batch_size=ROWS, batch_readahead=1, fragment_readahead=1):
            if not len(batch):
                continue
            lists = batch.column(0)
            values = lists.flatten().to_numpy(zero_copy_only=False)
            lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
            if lists.null_count or len(lengths) != 1:
                raise ValueError(f"{path}: a row of {column!r} is missing or of another length than the others.")
            yield values.reshape(len(lists), -1)


def stream(chunks: Iterable[np.ndarray], dim: int, rho: float = math.inf) -> GramAccumulator:
    """The accumulator of an iterable of chunks (k, m), in the memory of one chunk and O(m²)."""
    accumulator = GramAccumulator(dim)
    for chunk in chunks:
        accumulator.update(chunk, rho=rho)
    return accumulator


def _partition(load: Callable[..., Iterable[np.ndarray]], partition: object, dim: int, rho: float) -> GramAccumulator:
    return stream(load(partition), dim, rho)


def _merged(left: GramAccumulator, right: GramAccumulator) -> GramAccumulator:
    return GramAccumulator(left.dim).merge(left).merge(right)


def distributed_gram(
    partitions: Sequence[object],
    dim: int,
    rho: float = math.inf,
    *,
    scheduler: object,
    load: Callable[..., Iterable[np.ndarray]] = read_embeddings,
) -> GramAccumulator:
    """The accumulator of many partitions by map and pairwise merge on the workers of a dask scheduler.

    `scheduler` is an address ("tcp://host:8786") or a dask client; `load` maps a partition, a file by default, to
    chunks of embeddings. The merges form one fixed tree, so that the result does not depend on which worker was
    faster; the work of a worker that dies is done again by another. Needs the extra `scale` (dask).
    """
    if not partitions:
        return GramAccumulator(dim)
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("dask is missing: install spectral-collapse[scale] for partitions on many workers.") from None
    client = scheduler if isinstance(scheduler, Client) else Client(scheduler)
    try:
        parts = [client.submit(_partition, load, part, dim, rho, pure=False) for part in partitions]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [client.submit(_merged, *pair, pure=False) for pair in pairs] + parts[len(parts) // 2 * 2 :]
        return parts[0].result()
    finally:
        if client is not scheduler:
            client.close()
