"""`batch_size="auto"`: the largest step that fits, by memory that is really measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ftray
from ftray.config import FitConfig, validated
from ftray.errors import ConfigError, DataError, FtrayError
from ftray.events import FitStarted
from ftray.launch import start
from ftray.training import capacity, memory
from ftray.training.job import Job, prepare
from tests.test_fit_local import fit

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rows(labelled_rows: list[Any]) -> list[Any]:
    return [{**row, "text": f"{row['text']} {i}"} for i in range(20) for row in labelled_rows[:60]]


def options(model: Any, data: Any, **more: Any) -> dict[str, Any]:
    given = {
        "model": model if isinstance(model, nn.Module) else str(model),
        "train_data": data,
        "batch_size": "auto",
        "num_workers": 0,
    }
    return {**given, "device": "cpu", "loss": "SupConLoss", "epochs": 1, **more}


def job_of(model: Path, data: Any, **more: Any) -> Job:
    return prepare(validated(options(model, data, **more)), "/nowhere")


def with_memory(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(memory.CpuMemory, "free", lambda self: int(free))


def test_all_that_is_needed_is_the_cap_or_all_rows(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 64e9)
    few = job_of(tiny_model, rows[:100])
    assert few.batch_size == few.config.batch_size == 64
    (note,) = [note for note in few.notes if note.startswith("batch_size is 64, found in ")]
    assert note.endswith("that it may take; there are 100 rows")
    many = job_of(tiny_model, rows)
    assert many.batch_size == capacity.LARGEST == 1024
    assert any("the most that is tried" in note for note in many.notes)


class Heavy(nn.Module):
    """Holds a million bytes for each row until its gradient, which is as large, is there."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(2, 250_000, bias=False), nn.Linear(250_000, 4)

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.narrow(torch.tanh(self.wide(rows)))
        return out


def test_less_memory_gives_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes two to four megabytes, as measured; a half of what is free may be taken."""
    vectors = [{"features": [i / 400, 1.0], "label": f"c{i % 8}"} for i in range(400)]

    def found(megabytes: float) -> Job:
        with_memory(monkeypatch, megabytes * 1e6)
        torch.manual_seed(0)
        return start.job_of(validated(options(Heavy(), vectors)))  # type: ignore[arg-type]

    small, large = found(250), found(1000)
    assert 8 <= small.batch_size < large.batch_size <= 256
    for job in (small, large):
        assert any("rows would not fit" in note for note in job.notes)


def test_no_memory_is_an_error_that_names_the_way_out(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 0)
    with pytest.raises(
        ConfigError, match=r"a step of 4 rows does not fit into the memory.*micro_b"
    ):
        job_of(tiny_model, rows)


def test_what_the_loss_takes_counts(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All triplets of a step are a cube: a linear guess from small steps would be far too low."""
    with_memory(monkeypatch, 3e9)
    monkeypatch.setattr(capacity, "TRIAL_S", 0.0)
    sizes = [
        job_of(tiny_model, rows, loss=loss, sampler="random").batch_size
        for loss in ("SupConLoss", "TripletMarginLoss")
    ]
    assert sizes[1] < sizes[0]


def test_a_step_takes_the_longest_texts(tiny_model: Path, rows: list[Any]) -> None:
    job = job_of(tiny_model, rows, batch_size=8)
    trials = capacity._Trials(job, torch.device("cpu"), memory.CpuMemory())
    texts = [content for _, content in trials.step(8).texts]  # type: ignore[union-attr]
    assert len(texts) == 8
    lengths = sorted((len(text) for text in job.train.texts.to_pylist()), reverse=True)
    assert sorted(map(len, texts), reverse=True) == lengths[:8]  # type: ignore[arg-type]


def test_a_run_trains_and_is_resumed_with_what_was_found(
    tmp_path: Path, tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 64e9)
    given = options(tiny_model, rows[:100], run_name="run")
    from ftray.callbacks import Callback

    class CutOff(Callback):
        on = True

        def on_train_batch_end(self, state: Any) -> None:
            if self.on:
                raise ValueError("cut off")

    with pytest.raises(FtrayError, match="cut off"):
        fit(tmp_path, **given, callbacks=[CutOff()])
    CutOff.on = False
    with_memory(monkeypatch, 0)  # by now the machine is full: the size stays
    run = fit(tmp_path, **given, callbacks=[CutOff()], resume="must")
    started = [e.batch_size for e in run._record.events() if isinstance(e, FitStarted)]
    assert started == [64, 64] and run.config["batch_size"] == 64
    assert "batch_size is 64, found in" in run.logs()


def test_gpus_of_others_are_not_guessed(tiny_model: Path, rows: list[Any]) -> None:
    for given in ({"num_workers": 2}, {"num_workers": "auto"}):
        with pytest.raises(ConfigError, match="says nothing of the GPUs of workers on Ray"):
            job_of(tiny_model, rows, **given, device="auto")
    assert job_of(tiny_model, rows[:40], num_workers=2).batch_size == 32


def test_sizes_of_which_the_data_has_no_step_are_left_out(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows of eight each are no class-balanced step."""
    with_memory(monkeypatch, 64e9)
    job = job_of(tiny_model, rows[:100], sampler="class", num_items_per_class=8)
    assert job.batch_size in (32, 64)


def test_what_the_loss_can_remember_limits_the_size(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 64e9)
    given = {"loss": "CrossBatchMemory", "num_items_per_class": 2}
    inner = {"loss": "ContrastiveLoss"}
    job = job_of(tiny_model, rows, **given, loss_options={**inner, "memory_size": 20})
    assert job.batch_size == 16
    with pytest.raises(
        ConfigError, match=r"A step of 2 rows has up to 2 texts, more than .* \(1\)"
    ):
        job_of(tiny_model, rows, **given, loss_options={**inner, "memory_size": 1})


def test_data_without_a_step_of_any_size_say_why(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_memory(monkeypatch, 64e9)
    job = job_of(tiny_model, rows, batch_size=8)

    def none(self: Any, rows: int) -> Any:
        raise DataError(f"no step of {rows} rows")

    monkeypatch.setattr(capacity._Trials, "step", none)
    with pytest.raises(DataError, match="no step of 1024 rows"):
        capacity.find_batch_size(job)


@pytest.mark.parametrize(
    ("loss", "losses"), [("SupConLoss", 3), ("MultipleNegativesRankingLoss", 1)]
)
def test_each_worker_has_weights_of_its_own_and_may_have_a_loss(
    loss: str, losses: int, tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and the two moments of Adam, and the loss where its rows are not shared out."""
    train_a_step, of_loss = capacity._Trials._try, 1_000_000

    def as_if(self: Any, rows: int, step: Any) -> int:
        train_a_step(self, rows, step)
        return 5_000_000

    monkeypatch.setattr(capacity._Trials, "_try", as_if)
    monkeypatch.setattr(capacity._Trials, "_of_loss", lambda self, rows, step: of_loss)
    texts = [row["text"] for row in rows[:200]]
    pairs = [{"query": text, "document": f"{text} {i}"} for i, text in enumerate(texts)]
    needs = []
    for workers in (1, 3):
        data = rows[:200] if loss == "SupConLoss" else pairs
        job = job_of(tiny_model, data, batch_size=8, loss=loss, num_workers=workers)
        trials = capacity._Trials(job, torch.device("cpu"), memory.CpuMemory())
        needs.append(trials._needed(8, trials.step(8)))
    weights = [p for p in trials._learner.encoder.parameters() if p.grad is not None]
    each = 3 * 4 * sum(weight.numel() for weight in weights)
    others = needs[1] - 5_000_000 - (losses - 1) * of_loss
    assert needs[0] == 5_000_000 and 2 * each <= others < 2.1 * each


def test_nothing_is_measured_where_nothing_is_trained(tiny_model: Path, rows: list[Any]) -> None:
    assert job_of(tiny_model, rows, epochs=0).batch_size == 64


@pytest.mark.parametrize("value", [1, 0, -4, "many", 2.5])
def test_a_batch_size_is_a_number_or_auto(value: Any) -> None:
    with pytest.raises(FtrayError, match=r"batch_size = .*: a number of rows from 2, or 'auto'"):
        validated({"model": "m", "train_data": "t", "batch_size": value})
    assert FitConfig(model="m", train_data="t", batch_size="32").batch_size == 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_size_doubles_until_it_no_longer_fits(
    tiny_model: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_of(tiny_model, rows, device="cuda").batch_size == 1024
    left, _ = torch.cuda.mem_get_info()
    held = torch.empty(left - 200_000_000, dtype=torch.uint8, device="cuda")
    try:
        job = job_of(tiny_model, rows, device="cuda", loss="TripletMarginLoss")
    finally:
        del held
        torch.cuda.empty_cache()
    assert job.batch_size < 1024
    run = ftray.fit(listeners=[], **options(tiny_model, rows, device="cuda", batch_size=4))
    assert run.status() == "FINISHED"
