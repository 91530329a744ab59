"""Gram matrices of streams and of partitions on workers, one of which dies."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from spectral_collapse.sigma import GramAccumulator, scale

M = 24


def rows_of(seed: int, count: int = 500) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, M)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(rows: np.ndarray, path: Path, fixed: bool = True) -> Path:
    kind = pyarrow.list_(pyarrow.float32(), M) if fixed else pyarrow.list_(pyarrow.float32())
    table = pyarrow.table({"id": range(len(rows)), "embedding": pyarrow.array(list(rows), type=kind)})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=200)
    else:
        pyarrow.feather.write_feather(table, path, chunksize=200)
    return path


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_give_the_gram_matrix_of_their_rows(tmp_path, suffix, fixed, monkeypatch):
    monkeypatch.setattr(scale, "ROWS", 64)
    parts = [rows_of(seed, count) for seed, count in enumerate((500, 1, 333, 0))]
    files = [write(part, tmp_path / f"{k}.{suffix}", fixed) for k, part in enumerate(parts)]
    chunks = list(scale.read_embeddings(files))
    assert max(map(len, chunks)) <= 64
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(parts))
    found = scale.stream(scale.read_embeddings(files), M, rho=1.0)
    expected = GramAccumulator(M).update(np.concatenate(parts))
    assert found.n == expected.n == 834
    np.testing.assert_allclose(found.gram, expected.gram, rtol=1e-12, atol=1e-12)
    assert next(scale.read_embeddings(files[0])).shape == (64, M)


def test_files_that_hold_no_embeddings_are_named(tmp_path):
    file = write(rows_of(0), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'vector'; it has id, embedding"):
        next(scale.read_embeddings(file, "vector"))
    for name, lists in (("short", [[1.0, 2.0], [3.0]]), ("missing", [[1.0, 2.0], None])):
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"embedding": lists}), path)
        with pytest.raises(ValueError, match=rf"{name}\.parquet: a row of 'embedding' is missing or of another length"):
            next(scale.read_embeddings(path))


def test_a_stream_is_held_one_chunk_at_a_time():
    chunk = rows_of(1, 2000)
    tracemalloc.start()
    found = scale.stream((chunk * 1.0 for _ in range(100)), M)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.n == 200_000
    assert peak < 6 * chunk.nbytes  # a hundredth of the stream, and its float64 copy
    np.testing.assert_allclose(found.gram, 100 * GramAccumulator(M).update(chunk).gram, rtol=1e-10)


def partition(seed: int):
    """Chunks of a partition; partition 3 kills the first worker that reads it."""
    marker = os.environ.get("KILLED_ONCE")
    if seed == 3 and marker and not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)
    yield from np.array_split(rows_of(seed), 3)


@pytest.mark.filterwarnings("ignore")  # a worker that dies leaves open sockets
def test_two_workers_one_killed_give_the_same_result(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    expected = scale.stream((chunk for seed in range(9) for chunk in partition(seed)), M)
    marker = tmp_path / "killed"
    monkeypatch.setenv("KILLED_ONCE", str(marker))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    found = []
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path),
        silence_logs=50,
    ) as cluster:  # fmt: skip
        for _ in range(2):  # the first round loses a worker, the second does not
            address = cluster.scheduler_address
            found.append(scale.distributed_gram(range(9), M, 1.0, scheduler=address, load=partition))
    assert marker.exists()
    assert found[0].n == expected.n == 9 * 500
    np.testing.assert_array_equal(found[0].gram, found[1].gram)
    np.testing.assert_allclose(found[0].gram, expected.gram, rtol=1e-10, atol=1e-10)


def test_no_partitions_are_an_empty_sum():
    assert scale.distributed_gram([], M, scheduler="tcp://nowhere:1").n == 0


def stream_file(path: Path, table: pyarrow.Table) -> Path:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return path


def test_formats_that_others_write(tmp_path):
    rows = rows_of(0, 50)
    lists = pyarrow.table({"text": ["a"] * 50, "embedding": list(rows)})
    tensors = pyarrow.table({"embedding": pyarrow.FixedShapeTensorArray.from_numpy_ndarray(rows)})
    wide = pyarrow.table({f"dim_{k}": rows[:, k] for k in range(M)})
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "state.json").write_text("{}")
    stream_file(tmp_path / "dataset" / "data-00000-of-00002.arrow", lists.slice(0, 20))
    stream_file(tmp_path / "dataset" / "data-00001-of-00002.arrow", lists.slice(20))
    for name, table in (("upper.PARQUET", lists), ("tensors.parquet", tensors), ("wide.parquet", wide)):
        pyarrow.parquet.write_table(table, tmp_path / name)
    stream_file(tmp_path / "tensors.arrow", tensors)
    np.save(tmp_path / "matrix.npy", rows)
    for name in ("dataset", "upper.PARQUET", "tensors.parquet", "wide.parquet", "tensors.arrow", "matrix.npy"):
        found = np.concatenate(list(scale.read_embeddings(tmp_path / name)))
        np.testing.assert_array_equal(found, rows, err_msg=name)


def test_what_holds_no_embeddings_is_one_sentence(tmp_path):
    rows = rows_of(0, 50)
    pyarrow.parquet.write_table(pyarrow.table({"embedding": rows[:, 0]}), tmp_path / "scalar.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"embedding": [["a"]]}), tmp_path / "words.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "x": [1.0]}), tmp_path / "other.parquet")
    np.save(tmp_path / "vector.npy", rows[0])
    for name in ("empty.npy", "empty.arrow"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "junk.arrow").write_bytes(b"this is no arrow file")
    (tmp_path / "folder").mkdir()
    for name, said in {
        "scalar.parquet": "column 'embedding' holds float, not lists",
        "words.parquet": "the lists of 'embedding' hold string",
        "other.parquet": "has no column 'embedding'; it has text, x",
        "vector.npy": "a matrix",
        "empty.npy": "is no .npy file",
        "empty.arrow": "is no arrow file",
        "junk.arrow": "is no arrow file",
        "folder": "is a folder without a file",
    }.items():
        with pytest.raises(ValueError, match=said) as refused:
            list(scale.read_embeddings(tmp_path / name))
        assert str(tmp_path / name) in str(refused.value), name
