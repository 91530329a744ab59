"""Input of a Gram matrix: the frozen observed set, the encoder's dead directions, checks of embeddings."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .gram import finite_rows

DEAD = 1e-9  # largest energy of a dead direction, relative to the mean direction
AIM = 2  # embeddings per dimension to aim for


@dataclass(frozen=True)
class ObservedSet:
    """The blocks that are embedded at every checkpoint of a run, by id; frozen once and checked each time.

    `ids` are strings such as "stories-017/2" (prompt and block); `sha256` is their hash, kept in the record.
    """

    ids: tuple[str, ...]

    def __post_init__(self):
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("the observed set names a block twice: every id stands once.")

    @property
    def sha256(self) -> str:
        listed = json.dumps(list(self.ids), separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(listed.encode()).hexdigest()

    def check(self, recorded_sha256: str) -> None:
        """ValueError unless the recorded hash is this set's."""
        if recorded_sha256 != self.sha256:
            raise ValueError(
                f"the observed set changed between checkpoints (hash {recorded_sha256[:12]}… then, {self.sha256[:12]}… "
                "now): a drift would mix two sets; measure all checkpoints on one."
            )

    def select(self, ids: Sequence[str], embeddings: np.ndarray) -> np.ndarray:
        """The set's rows of `embeddings` (k, m), whose rows are named by `ids`, in the set's order.

        ValueError if a block of the set is missing or named twice.
        """
        place = {name: row for row, name in enumerate(ids)}
        if len(place) != len(ids) or len(ids) != len(embeddings):
            raise ValueError(f"{len(embeddings)} embeddings need as many different ids: {len(place)} of {len(ids)}.")
        if missing := [name for name in self.ids if name not in place]:
            raise ValueError(
                f"the observed set changed between checkpoints: {len(missing)} of {len(self.ids)} blocks are missing, "
                f"{missing[0]!r} first; freeze the set to blocks that every checkpoint has."
            )
        return np.asarray(embeddings)[[place[name] for name in self.ids]]


@dataclass(frozen=True)
class LiveSpace:
    """The directions in which an encoder's embeddings move: `basis` (m, m_eff), orthonormal columns.

    `dead_coordinates` are the coordinates that are zero on the reference set.
    """

    basis: np.ndarray
    dead_coordinates: tuple[int, ...]

    @property
    def dim(self) -> int:
        return self.basis.shape[0]

    @property
    def m_eff(self) -> int:
        return self.basis.shape[1]

    def project(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings (k, m) in the live directions, (k, m_eff)."""
        return np.asarray(embeddings) @ self.basis

    def project_gram(self, gram: np.ndarray) -> np.ndarray:
        """The Gram matrix of the projected embeddings, (m_eff, m_eff)."""
        return self.basis.T @ gram @ self.basis

    def hidden_by_delta(self, n_observed: int, delta: float) -> float:
        """What the dead directions add to Track II if they are kept: (m − m_eff) log(δ/n_A).

        It depends on δ and n_A alone; in a drift δ cancels, and n_A only if it is constant.
        """
        return (self.dim - self.m_eff) * math.log(delta / n_observed)


def live_space(reference: np.ndarray, tolerance: float = DEAD) -> LiveSpace:
    """The live directions of an encoder, from embeddings (k, m) of a broad reference set.

    A direction is dead if its energy is below `tolerance` times the mean energy of a direction. If the dead directions
    are coordinates, the basis just omits them. ValueError for fewer than 2 m rows, with which live directions may look
    dead, and for rows that are not finite.
    """
    rows = finite_rows(reference)
    count, m = rows.shape
    if count < 2 * m:
        raise ValueError(f"{count} reference embeddings are too few to tell dead directions of {m}: give {2 * m}.")
    gram = rows.T @ rows
    floor = tolerance * np.trace(gram) / m
    dead = np.flatnonzero(np.diag(gram) <= floor)
    eigenvalues, vectors = np.linalg.eigh(gram)
    live = vectors[:, eigenvalues > floor]
    if live.shape[1] == m - len(dead):
        live = np.delete(np.eye(m), dead, axis=1)
    return LiveSpace(live, tuple(map(int, dead)))


def _listed(places: np.ndarray, most: int = 8) -> str:
    return ", ".join(map(str, places[:most])) + (", …" if len(places) > most else "")


def health_checks(
    embeddings: np.ndarray, rho: float, delta: float, groups: Sequence[object] | None = None
) -> list[str]:
    """One sentence for each thing that makes the tracks of these embeddings (n_A, m) misleading; [] if sound.

    `groups` names the prompt, or another source, of each row: rows that share one depend on each other.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"embeddings have shape {rows.shape}: rows (number, dimension) are expected.")
    count, m = rows.shape
    if not count:
        return ["there is no embedding: the responses are empty, or too short for a block."]
    if bad := int((~np.isfinite(rows).all(axis=1)).sum()):
        return [f"{bad} of {count} embeddings are not finite (NaN or infinite): look at the text they were made from."]
    energy = (rows**2).sum(1)
    found = []
    if over := int((energy > rho * (1 + 1e-6)).sum()):
        found.append(
            f"{over} of {count} embeddings exceed the energy budget rho = {rho:g} (largest squared norm "
            f"{energy.max():.4g}): Track I spikes and bounds nothing; normalise them."
        )
    if zeros := int((energy == 0).sum()):
        found.append(
            f"{zeros} of {count} embeddings are zero vectors: each counts in n_A and adds nothing to the Gram matrix; "
            "leave them out."
        )
        if zeros == count:
            return found
    if groups is not None and (sources := len(set(groups))) < count:
        found.append(
            f"{count} embeddings come from {sources} groups: rows of one group depend on each other, and an interval "
            "that takes them for independent covers far less than it says; use grouped_logdet_estimate."
        )
    if ((rows - rows.mean(0)) ** 2).sum() <= 1e-10 * energy.sum():
        found.append("all embeddings are the same vector: both tracks stay flat whatever the model does.")
        return found
    floor = DEAD * energy.sum() / m
    if (dead := np.flatnonzero((rows**2).sum(0) <= floor)).size:
        found.append(
            f"{len(dead)} of {m} coordinates are zero in all embeddings ({_listed(dead)}): dead directions of the "
            f"encoder, of which {len(dead)} log delta = {len(dead) * math.log(delta):.1f} is in the tracks; "
            "`live_space` leaves them out."
        )
        rows, m = np.delete(rows, dead, axis=1), m - len(dead)
    if count < m:
        found.append(
            f"{count} embeddings span at most {count} of {m} dimensions: {m - count} log delta = "
            f"{(m - count) * math.log(delta):.1f} dominates both tracks; observe more blocks or shrink."
        )
        return found
    eigenvalues = np.linalg.eigvalsh(rows.T @ rows)
    rank = int((eigenvalues > floor).sum())
    different = len(np.unique((rows / np.abs(rows).max()).astype(np.float32), axis=0))
    if rank < m:
        cause = "the responses repeat themselves" if different < m else "dead directions of the encoder (`live_space`)"
        found.append(
            f"{count} embeddings, {different} of them different, span {rank} of {m} dimensions: {cause}; {m - rank} "
            f"log delta = {(m - rank) * math.log(delta):.1f} is in the tracks, and log det G is not finite."
        )
    elif delta >= np.median(eigenvalues):
        found.append(
            f"delta = {delta:g} is not below {int((eigenvalues <= delta).sum())} of the {m} eigenvalues of the Gram "
            "matrix: both tracks say more of delta than of the text; take it far below the smallest."
        )
    if count < AIM * m:
        found.append(
            f"{count} embeddings are fewer than {AIM} for each of {m} dimensions: the log-determinant is more bias "
            "than signal, and drifts are noisy; observe more blocks."
        )
    return found
