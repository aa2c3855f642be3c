"""Training data in its normal form: distinct texts, rows of text numbers, and groups.

The same text twice is one text. Labelled rows are (text, class); pairs are (query, document) with
the connected group of pairs that share texts, so that losses on labels never take a text that is
stated to be relevant, however indirectly, for a negative. InfoNCE masks by the texts themselves.
Triplets are pairs with one negative or several each, which connect nothing; to distil from, with a
teacher's score of the document and of each negative.
Scored pairs are pairs with a number; nothing is a negative there, and the groups only tell which
pairs a split must not part.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ftray.data.columns import roles_like
from ftray.data.distinct import numbered_rows
from ftray.data.readers import Records
from ftray.errors import DataError
from ftray.media import NO_BLOBS, Blobs, Content, Modality, contents, modalities_of
from ftray.words import counted

__all__ = ["StepRows", "TrainSet", "train_set"]

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """The rows of one step, as the encoder and the loss need them.

    Attributes:
        rows: row numbers of the data set, `(B,)`.
        texts: the step's distinct (role, content) items in order of first use, `U` of them: texts,
            or other things. The role is "query", "document" or "" and selects the encoder's prompt.
        columns: position in `texts` of each row's cells, `(B, C)`.
        text_ids: text number of each row's cells, `(B, C)`: equal numbers are equal texts.
        label_items: position in `texts` of each labelled item, `(M,)`.
        labels: class or group of each labelled item, `(M,)`. Negatives have none.
        scores: the score of each row, `(B,)`, or a teacher's of its document and of each negative,
            `(B, 1 + n)`; `(0,)` where there are none.
    """

    rows: Numbers
    texts: list[tuple[str, Content]]
    columns: Numbers
    text_ids: Numbers
    label_items: Numbers
    labels: Numbers
    scores: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, kw_only=True)
class TrainSet:
    """Distinct texts `(T,)`, rows of text numbers `(N, C)`, and the group of each row `(N,)`.

    Things that are no texts stand among these as references (see `ftray.media`), and `blobs` has
    the contents of those that lie in no file.
    `C` is 1 for labelled data, 2 for pairs, and 2 + n for triplets with n negatives (query,
    document, negatives), to distil from or not. Scored pairs have `scores` `(N,)`; to distil from,
    there is a teacher's score of the document and of each negative, `(N, 1 + n)`, of which only the
    differences mean something; others have None.
    `n_groups` is the number of classes, or of connected groups of pairs, in the whole data: the
    parts of a split number their groups alike, though they may not hold all of them.
    """

    kind: Literal["labelled", "pairs", "triplets", "distillation", "scored"]
    texts: pa.Array
    rows: Numbers
    groups: Numbers
    n_groups: int
    notes: tuple[str, ...]
    source: str
    fingerprint: str
    scores: Floats | None = None
    blobs: Blobs = NO_BLOBS

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def modalities(self) -> tuple[frozenset[Modality], ...]:
        """What each column holds."""
        columns = range(self.rows.shape[1])
        held = modalities_of(self.texts)
        if len(held) == 1:
            return tuple(held for _ in columns)
        numbers = (np.unique(self.rows[:, column]) for column in columns)
        return tuple(modalities_of(self.texts.take(pa.array(some))) for some in numbers)

    @property
    def example(self) -> Content:
        """The first thing that a row holds."""
        return contents([self.texts[int(self.rows[0, 0])].as_py()], self.blobs)[0]

    @property
    def texts_alone(self) -> bool:
        """Whether there is nothing but texts."""
        return modalities_of(self.texts) <= {"text"}

    @property
    def has_queries(self) -> bool:
        """Whether the first text of a row is a query, and the others are documents."""
        return self.kind in ("pairs", "triplets", "distillation")

    @property
    def negatives(self) -> int:
        """How many negatives each row brings, n."""
        return max(int(self.rows.shape[1]) - 2, 0)

    def step_rows(self, rows: Numbers, *, roles_differ: bool) -> StepRows:
        """The items of one step.

        Args:
            rows: row numbers, `(B,)`.
            roles_differ: whether the encoder treats queries and documents differently (prompts);
                if not, one text is one item in whatever column it stands. So it is in scored pairs,
                which have two texts of one kind.
        """
        cells = self.rows[rows]
        width = cells.shape[1]
        by_role = roles_differ and self.has_queries
        roles = np.minimum(np.arange(width), 1 if by_role else 0)  # negatives are documents
        keys = (cells * 2 + roles).ravel()
        distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        columns = place[inverse].reshape(cells.shape)
        names = ("query", "document") if by_role else ("", "")
        picked = self.texts.take(pa.array(distinct[order] // 2)).to_pylist()
        items = [
            (names[role], content)
            for role, content in zip(
                (distinct[order] % 2).tolist(), contents(picked, self.blobs), strict=True
            )
        ]
        if self.kind == "labelled":
            label_items, labels = columns[:, 0], self.groups[rows]
        else:
            label_items, where = np.unique(columns[:, :2], return_index=True)
            labels = self.groups[rows][where // 2]
        return StepRows(
            rows=rows,
            texts=items,
            columns=columns,
            text_ids=cells,
            label_items=label_items,
            labels=labels,
            scores=np.zeros(0) if self.scores is None else self.scores[rows],
        )

    def subset(self, rows: Numbers, source: str) -> TrainSet:
        """The same texts and group numbers, fewer rows."""
        return TrainSet(
            kind=self.kind,
            texts=self.texts,
            rows=self.rows[rows],
            groups=self.groups[rows],
            n_groups=self.n_groups,
            notes=(),
            source=source,
            fingerprint=hashlib.sha256(self.fingerprint.encode() + rows.tobytes()).hexdigest()[:16],
            scores=None if self.scores is None else self.scores[rows],
            blobs=self.blobs,
        )

    def split(self, share: float, seed: int) -> tuple[TrainSet, TrainSet]:
        """Hold out about `share` of the rows: two at a time of one class, or whole groups of pairs.

        A single row of a class would have no positive, and the validation loss no meaning.

        Raises:
            DataError: if nothing would be left on one side.
        """
        rng = np.random.default_rng((seed, 0x5EED))
        if self.kind == "labelled":
            couples = self._couples(rng)
            # every 1/share-th couple in class order: each class gives its share
            ticks = np.floor(np.arange(len(couples) + 1) * share + rng.random())
            held = np.zeros(len(self), bool)
            held[couples[np.diff(ticks) > 0].ravel()] = True
        else:
            sizes = np.bincount(self.groups)
            order = rng.permutation(len(sizes))
            order = order[sizes[order] <= share * len(self)]  # larger ones stay in training
            taken = np.cumsum(sizes[order]) <= share * len(self)
            held = np.isin(self.groups, order[taken])
        if not held.any() or held.all():
            raise DataError(
                f"val_split = {share} of {counted(len(self), 'row')} leaves one side without rows: "
                "give another share, or eval_data"
            )
        note = f"rows held out for the validation loss: {held.sum():,} of {len(self):,}"
        train = self.subset(np.flatnonzero(~held), self.source)
        return (
            replace(train, notes=(*self.notes, note)),
            self.subset(np.flatnonzero(held), f"{share:.0%} of {self.source}"),
        )

    def _couples(self, rng: np.random.Generator) -> Numbers:
        """Shuffled rows of each class two by two, in class order, `(couples, 2)`."""
        order = rng.permutation(len(self))
        order = order[np.argsort(self.groups[order], kind="stable")]
        groups = self.groups[order]
        place = np.arange(len(order)) - np.searchsorted(groups, groups)
        first = np.flatnonzero((place[:-1] % 2 == 0) & (groups[:-1] == groups[1:]))
        return np.stack([order[first], order[first + 1]], axis=1)


def train_set(records: Records, *, where: str = "train_data") -> TrainSet:
    """Bring records into the normal form; equal rows become one.

    Raises:
        DataError: for records with neither labels nor pairs.
    """
    if records.kind == "items":
        raise DataError(
            f"{where} ({records.source}) has one column of texts. To learn from, it needs labels "
            "(item,label) or pairs (query,document), which may have a score, negatives, or both."
        )
    return _labelled(records) if records.kind == "labelled" else _pairs(records, records.kind)


def _labelled(records: Records) -> TrainSet:
    cells = records.cells
    assert cells.labels is not None and cells.marks is not None
    kept = numbered_rows(*cells.keys)[1]
    return TrainSet(
        kind="labelled",
        texts=cells.texts,
        rows=cells.columns[0][kept, None],
        groups=cells.marks[kept],
        n_groups=len(cells.labels),
        notes=records.notes,
        source=records.source,
        fingerprint=records.fingerprint,
        blobs=records.blobs,
    )


def _pairs(
    records: Records, kind: Literal["pairs", "triplets", "distillation", "scored"]
) -> TrainSet:
    """Pairs, which may have scores or negatives; one pair with two of these is two rows."""
    cells = records.cells
    kept = numbered_rows(*cells.keys)[1]
    rows = np.stack([column[kept] for column in cells.columns], axis=1)
    groups, note = _connected(rows[:, :2], len(cells.texts))
    return TrainSet(
        kind=kind,
        texts=cells.texts,
        rows=rows,
        groups=groups,
        n_groups=int(groups.max()) + 1,
        notes=(*records.notes, *note),
        source=records.source,
        fingerprint=records.fingerprint,
        blobs=records.blobs,
        scores=_scores(records, kept),
    )


def _scores(records: Records, kept: Numbers) -> Floats | None:
    """The score of each row that is kept, `(N,)`; to distil from all its scores, `(N, 1 + n)`."""
    names = roles_like(records.table.column_names, "score")
    if not names:
        return None
    scores = np.stack([records.table[name].to_numpy()[kept] for name in names], axis=1)
    return scores if records.kind == "distillation" else scores[:, 0]


def _connected(rows: Numbers, n_texts: int) -> tuple[Numbers, list[str]]:
    """The connected group of each pair, `(N,)`, and a note where any has several pairs."""
    graph = coo_array((np.ones(len(rows), bool), (rows[:, 0], rows[:, 1])), (n_texts,) * 2)
    _, component = connected_components(graph, directed=False)
    _, groups = np.unique(component[rows[:, 0]], return_inverse=True)
    sizes = np.bincount(groups)
    if sizes.max() == 1:
        return groups.astype(np.int64), []
    note = f"pairs that share texts form {len(sizes)} groups, the largest with {sizes.max()} "
    return groups.astype(np.int64), [f"{note}of {len(rows)} pairs"]
