"""Gram matrices of streams of embeddings, and of partitions on many workers."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.ipc

from .gram import GramAccumulator

ROWS = 8192  # read at a time


def read_embeddings(paths: Sequence[Path | str] | Path | str, column: str = "embedding") -> Iterator[np.ndarray]:
    """Chunks (≤ 8,192, m) of the embeddings in files, in the memory of one chunk.

    The suffix decides: .npy (a matrix, one embedding a row), .parquet, otherwise arrow (IPC file, feather, or the
    stream written by Dataset.save_to_disk; a folder stands for its files). A table has a `column` of equally long lists
    or one-axis tensors, or one column of numbers for each dimension. ValueError, with the file, for anything else, a
    missing row, and lists of unequal length.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise ValueError(f"{path} is a folder without a file of {', '.join(SUFFIXES)}.")
            yield from read_embeddings(files, column)
        elif path.suffix.lower() == ".npy":
            try:
                rows = np.load(path, mmap_mode="r", allow_pickle=False)
            except (EOFError, ValueError) as error:
                raise ValueError(f"{path} is no .npy file of numbers: {error}.") from None
            if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.number):
                raise ValueError(
                    f"{path} holds {rows.dtype} of shape {rows.shape}: a matrix (number, dimension) is read."
                )
            for start in range(0, len(rows), ROWS):
                yield np.asarray(rows[start : start + ROWS])
        else:
            for batch in _batches(path, column):
                if len(batch):
                    yield _matrix(batch, path, column)


SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc", ".npy")


def _batches(path: Path, column: str) -> Iterator[pyarrow.RecordBatch]:
    """Batches of the column, or of all columns of numbers."""
    with path.open("rb") as file:
        # The stream format has no magic number at its start, and pyarrow.dataset does not read it.
        stream = path.suffix.lower() != ".parquet" and file.read(6) not in (b"ARROW1", b"FEA1\0\0")
    if stream:
        try:
            reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is no arrow file: {error}.") from None
        names = _columns(reader.schema, path, column)
        for batch in reader:
            for start in range(0, len(batch), ROWS):
                yield batch.select(names).slice(start, ROWS)
        return
    dataset = pyarrow.dataset.dataset(path, format="parquet" if path.suffix.lower() == ".parquet" else "ipc")
    names = _columns(dataset.schema, path, column)
    # Without read-ahead the memory is that of one batch.
    yield from dataset.to_batches(columns=names, batch_size=ROWS, batch_readahead=1, fragment_readahead=1)


def _columns(schema: pyarrow.Schema, path: Path, column: str) -> list[str]:
    numbers = [pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) for kind in schema.types]
    if column in schema.names:
        return [column]
    if len(numbers) > 1 and all(numbers):
        return schema.names
    raise ValueError(f"{path} has no column {column!r}; it has {', '.join(schema.names[:20])}.")


def _matrix(batch: pyarrow.RecordBatch, path: Path, column: str) -> np.ndarray:
    """The rows (k, m) of a batch: of one column of lists or tensors, or of its columns of numbers."""
    if batch.num_columns > 1:
        if any(part.null_count for part in batch.columns):
            raise ValueError(f"{path}: a number is missing.")
        return np.column_stack([part.to_numpy(zero_copy_only=False) for part in batch.columns])
    lists, kind = batch.column(0), batch.schema.types[0]
    if isinstance(kind, pyarrow.FixedShapeTensorType) and len(kind.shape) == 1:
        lists = lists.storage
    elif not isinstance(lists, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        raise ValueError(f"{path}: column {column!r} holds {kind}, not lists of numbers: an embedding is one list.")
    lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    if lists.null_count or len(lengths) != 1:
        raise ValueError(f"{path}: a row of {column!r} is missing or of another length than the others.")
    values = lists.flatten()
    if not (pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type)):
        raise ValueError(f"{path}: the lists of {column!r} hold {values.type}, not numbers.")
    return values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def stream(chunks: Iterable[np.ndarray], dim: int, rho: float = math.inf) -> GramAccumulator:
    """The accumulator of chunks (k, m), in the memory of one chunk and O(m²)."""
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
    chunks of embeddings. Merges form a fixed tree, so the result does not depend on the workers' speed; if a worker
    dies, another repeats its work. Needs the extra `scale` (dask).
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
