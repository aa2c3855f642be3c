"""What the log says of a fit before it starts: what was read, and what a step will hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.callbacks.base import Callback
from ftray.callbacks.early_stopping import EarlyStopping
from ftray.config import FitConfig
from ftray.data.addresses import noun_of
from ftray.data.dataset import TrainSet
from ftray.data.plan import ClassBalancedPlan, PairsPlan, Plan
from ftray.evaluation.spec import EvaluationSpec
from ftray.losses.metric import CLASSIFICATION_LOSSES
from ftray.losses.registry import MEMORY_LOSS, loss_names, loss_needs
from ftray.media import modalities_of
from ftray.words import counted

__all__ = ["data_note", "evaluation_note", "interval_notes", "left_out_note", "overlap_notes"]
__all__ += ["step_note"]

Numbers = npt.NDArray[np.int64]


def data_note(name: str, data: TrainSet) -> str:
    """How a source was read, how many rows and groups it has, what was noticed."""
    return f"{name}: {data.source}: {'; '.join(data.notes) or _size(data)}"


def _size(data: TrainSet) -> str:
    """Of a part that was held out: it has no notes of its own."""
    groups = len(np.unique(data.groups))
    if data.kind == "labelled":
        return f"{counted(len(data), 'row')} of {counted(groups, 'class', 'classes')}"
    noun = "triplet" if data.negatives else "pair"
    return f"{counted(len(data), noun)} in {counted(groups, 'group')}"


def evaluation_note(spec: EvaluationSpec) -> str:
    """The same of an evaluation, with its queries and documents."""
    return f"{spec.name}: {'; '.join(spec.data.notes)}"


def interval_notes(
    callbacks: Sequence[Callback], evaluations: Sequence[EvaluationSpec]
) -> list[str]:
    """What the patience of an EarlyStopping counts, where that is not epochs; it learns so here."""
    notes = []
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping):
            continue
        for spec in evaluations:
            every = spec.steps_per_interval
            if every is not None and callback.monitor in map(spec.key, spec.metrics):
                callback.counts = "evaluation"
                notes.append(
                    f"EarlyStopping counts evaluations of '{callback.monitor}': one every "
                    f"{counted(every, 'step')}, and one at each epoch's end"
                )
    return notes


def left_out_note(count: int, train: TrainSet) -> str:
    """Said of rows for which an epoch has no room."""
    return (
        f"{count:,} of {counted(len(train), 'row')} do not fit an epoch without crowding its "
        "steps: they take turns over the epochs"
    )


def overlap_notes(
    train: TrainSet, val: TrainSet | None, evaluations: tuple[EvaluationSpec, ...]
) -> list[str]:
    """What is evaluated or validated with, and stands in the training data as well.

    Metrics of such texts say less about new ones. Labelled validation rows count by their text,
    pairs and triplets by query and document.
    """
    notes = []
    if val is not None and (known := _rows_in_common(train, val)):
        rows = counted(len(val), "validation row")
        notes.append(f"{known:,} of {rows} also stand in the training data")
    used = train.texts.take(pa.array(np.unique(train.rows))).cast(pa.large_string())
    for spec in evaluations:
        asked = spec.query_texts.cast(pa.large_string())
        known = pc.sum(pc.is_in(asked, value_set=used)).as_py() or 0
        if known:
            noun = _noun(asked)
            things = counted(len(asked), noun if "pairs" in spec.counts else f"query {noun}")
            which = f"the evaluation '{spec.caption}'" if spec.caption else "the evaluation"
            notes.append(f"{known:,} of {things} of {which} also stand in the training data")
    return notes


def _rows_in_common(train: TrainSet, val: TrainSet) -> int:
    """How many rows of `val` are rows of `train`."""
    texts = val.texts.cast(pa.large_string())
    found = pc.index_in(texts, value_set=train.texts.cast(pa.large_string()))
    number = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = number[val.rows[:, :2]]
    rows = rows[(rows >= 0).all(axis=1)]
    count = len(train.texts)
    return int(np.isin(_keys(rows, count), _keys(train.rows[:, :2], count)).sum())


def _keys(rows: Numbers, count: int) -> Numbers:
    """One number for each row of text numbers."""
    keys: Numbers = rows[:, 0] if rows.shape[1] == 1 else rows[:, 0] * count + rows[:, 1]
    return keys


def step_note(config: FitConfig, train: TrainSet, plan: Plan) -> str:
    """Of what a text of a whole step is told apart: its positives and negatives."""
    most = "up to " if isinstance(plan, PairsPlan) and plan.left_out(0) else ""
    line = f"Each step: {most}{_step(config, train, plan)}, whatever the number of workers"
    if MEMORY_LOSS in loss_names(config.loss, config.loss_options):
        line += ", and those that the loss remembers of the steps before"
    if config.miner is not None:
        line += f"; {config.miner} picks among them"
    return line


def _step(config: FitConfig, train: TrainSet, plan: Plan) -> str:
    size, noun = plan.batch_size, _noun(train.texts)
    losses = set(loss_names(config.loss, config.loss_options))
    if train.kind == "scored":
        if losses <= {"AnglELoss", "CoSENTLoss"}:
            return f"{counted(size, 'pair')}, ranked by their scores"
        return f"{counted(size, 'pair')}, each compared with its score"
    if train.kind == "triplets":
        return _triplet_step(config, size, train.negatives)
    if train.kind == "distillation":
        return f"{counted(size, 'triplet')}, each compared with its teacher's scores"
    if losses == {"VICRegLoss"}:
        return f"{counted(size, 'pair')}, each compared with itself; there are no negatives"
    if loss_needs(config.loss, config.loss_options) == "pairs":
        most = "the" if isinstance(plan, PairsPlan) and not plan.left_out(0) else "up to"
        return (
            f"{counted(size, 'pair')}; each query is ranked against {most} "
            f"{counted(size - 1, 'other document')} of the global batch (negatives)"
        )
    if losses <= CLASSIFICATION_LOSSES:
        classes = counted(train.n_groups, "class", "classes")
        return f"{counted(size, noun)}, each placed among {classes}"
    if train.kind == "pairs":
        negatives = counted(2 * (size - 1), "negative")
        return f"{counted(size, 'pair')}; a positive and up to {negatives} for each {noun}"
    if isinstance(plan, ClassBalancedPlan):
        return _class_step(train, plan, noun)
    article = "an" if noun[0] in "aeiou" else "a"
    return (
        f"{counted(size, noun)} at random; those of its class are {article} {noun}'s positives, "
        "the others its negatives"
    )


def _noun(texts: pa.Array) -> str:
    """What one of these things is called; those of several modalities are items."""
    held = modalities_of(texts)
    return noun_of(pa.chunked_array([texts]), held) if len(held) == 1 else "item"


def _triplet_step(config: FitConfig, size: int, negatives: int) -> str:
    """Of triplets with so many negatives each."""
    triplets = counted(size, "triplet")
    own = "negative" if negatives == 1 else "negatives"
    if loss_needs(config.loss, config.loss_options) != "pairs":
        return f"{triplets}; each document is told apart from its own {own}"
    return (
        f"{triplets}; each query is ranked against up to "
        f"{counted((1 + negatives) * size - 1, 'other document')} of the global batch "
        f"({counted(negatives * size, 'negative')} given with the triplets)"
    )


def _class_step(train: TrainSet, plan: ClassBalancedPlan, noun: str) -> str:
    classes, each = plan.classes_per_step, plan.items_per_class
    sizes = np.bincount(train.groups)
    most = "up to " if sizes[sizes > 0].min() < each else ""
    return (
        f"{classes} classes x {counted(each, noun)}; {most}{counted(each - 1, 'positive')} and "
        f"{most}{counted((classes - 1) * each, 'negative')} for each {noun}"
    )
