"""Checkpoints: what is read back is bit-equal, and what is incomplete is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftray.config import FitConfig
from ftray.errors import StorageError
from ftray.losses.base import StepLoss
from ftray.losses.registry import build_loss
from ftray.record.storage import Storage
from ftray.training.average import Average
from ftray.training.checkpoint import (
    Position,
    Trained,
    amend_checkpoint,
    latest_checkpoint,
    load_weights,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)
from ftray.training.optim import build_optimizer
from ftray.training.schedule import SCHEDULERS, build_scheduler

torch.set_num_threads(1)

TIED = ("words.weight", "decoder.weight")


class Net(nn.Module):
    """An embedding that is tied to an output layer, a norm, a bias, and a running average."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.norm = nn.BatchNorm1d(6)
        self.decoder = nn.Linear(6, 11)
        self.decoder.weight = self.words.weight

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.norm(self.words(rows)))
        return out


class Training:
    """A model, a loss with parameters of its own, an optimizer, and steps without a data set."""

    def __init__(self, seed: int, optimizer: str = "AdamW", **options: Any) -> None:
        torch.manual_seed(seed)
        self.encoder = Net()
        self.loss: StepLoss = build_loss(
            "ProxyAnchorLoss", {}, embedding_dim=11, n_groups=3, seed=seed
        )
        config = FitConfig(
            model="m",
            train_data="t",
            optimizer=optimizer,
            optimizer_options=options,
            learning_rate=0.01,
        )
        self.optimizer = build_optimizer(config, self.encoder, self.loss)

    def steps(self, *numbers: int) -> None:
        for number in numbers:
            draw = torch.Generator().manual_seed(number)
            out = self.encoder(torch.randint(0, 11, (8,), generator=draw))
            proxies = next(self.loss.parameters())
            self.optimizer.zero_grad()
            loss = out.square().mean() + (proxies - out[:3]).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def write(self, storage: Storage, position: Position | None = None) -> str:
        position = position or Position(epoch=1, global_step=4)
        return write_checkpoint(storage, position, self.trained)

    def read(self, storage: Storage, name: str) -> Position:
        return read_checkpoint(storage, name, self.trained)

    @property
    def trained(self) -> Trained:
        return Trained(self.encoder, self.loss, [self.optimizer])


def assert_same_bits(a: Any, b: Any) -> None:
    """Tensors, numbers and containers of them; tuples and lists count as the same."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            assert_same_bits(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    else:
        assert a == b


def assert_same_training(a: Training, b: Training) -> None:
    assert_same_bits(a.encoder.state_dict(), b.encoder.state_dict())
    assert_same_bits(a.loss.state_dict(), b.loss.state_dict())
    assert_same_bits(a.optimizer.state_dict(), b.optimizer.state_dict())


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


# ---------------------------------------------------------------- there and back


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True, "betas": [0.8, 0.99]}),
    ("AdamW", {"fused": False, "foreach": False}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adafactor", {}),
    ("Adam", {}),
    ("Adagrad", {}),
    ("NAdam", {}),
    ("RMSprop", {"centered": True}),
    ("ASGD", {}),
    ("Rprop", {}),
]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_that_is_read_back_goes_on_bit_equal(
    storage: Storage, name: str, options: dict[str, Any]
) -> None:
    undisturbed = Training(0, name, **options)
    undisturbed.steps(0, 1, 2, 3)
    saved = undisturbed.write(storage)
    resumed = Training(1, name, **options)
    resumed.read(storage, saved)
    assert_same_training(resumed, undisturbed)
    undisturbed.steps(4, 5, 6)
    resumed.steps(4, 5, 6)
    assert_same_training(resumed, undisturbed)


def test_checkpoint_before_the_first_step(storage: Storage) -> None:
    first, second = Training(0), Training(1)
    second.read(storage, first.write(storage, Position()))
    first.steps(0)
    second.steps(0)
    assert_same_training(first, second)


def test_tied_weights_stay_tied_and_are_stored_under_both_names(storage: Storage) -> None:
    first, second = Training(0), Training(1)
    first.steps(0)
    second.read(storage, first.write(storage))
    assert second.encoder.words.weight is second.encoder.decoder.weight
    state = first.encoder.state_dict()
    assert torch.equal(second.encoder.words.weight, state[TIED[0]])
    assert torch.equal(state[TIED[0]], state[TIED[1]])


def test_half_precision_weights_keep_their_bits(storage: Storage) -> None:
    first, second = nn.Linear(3, 2, dtype=torch.bfloat16), nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    name = write_checkpoint(storage, Position(), Trained(first, nn.Identity(), [optimizer]))
    load_weights(storage, name, second)
    assert_same_bits(second.state_dict(), first.state_dict())


def test_position_comes_back_whole(storage: Storage) -> None:
    position = Position(
        epoch=2,
        step=7,
        global_step=27,
        metrics={"val_loss": 0.1 + 0.2, "ndcg_at_k": math.inf},
        best={"name": "epoch-0001", "monitor": "val_loss", "value": 0.25, "global_step": 10},
        callbacks=[{"best": 0.25, "waited": 1}, {}],
        scheduler={"last_epoch": 27, "_last_lr": [1e-5 / 3]},
        scaler={"scale": 65536.0},
        epoch_losses=[0.5, 1 / 3],
    )
    name = Training(0).write(storage, position)
    assert Training(1).read(storage, name) == position


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_goes_on_where_it_was(storage: Storage, name: str) -> None:
    def schedule(training: Training) -> Any:
        options = {
            "cosine_with_min_lr": {"min_lr_rate": 0.1},
            "warmup_stable_decay": {"num_decay_steps": 5},
        }.get(name, {})
        config = FitConfig(model="m", train_data="t", scheduler=name, scheduler_options=options)
        return build_scheduler(config, [training.optimizer], 20)

    first, second = Training(0), Training(1)
    undisturbed, resumed = schedule(first), schedule(second)
    for _ in range(7):
        first.optimizer.step()
        undisturbed.step()
    saved = first.write(storage, Position(scheduler=undisturbed.state_dict()))
    resumed.load_state_dict(second.read(storage, saved).scheduler)
    for _ in range(10):
        assert resumed.state_dict() == undisturbed.state_dict()
        for training, each in ((first, undisturbed), (second, resumed)):
            training.optimizer.step()
            each.step()
        assert [g["lr"] for g in first.optimizer.param_groups] == [
            g["lr"] for g in second.optimizer.param_groups
        ]


def test_loss_without_parameters_has_no_file(storage: Storage) -> None:
    encoder = nn.Linear(2, 2)
    loss = build_loss("InfoNCE", {}, embedding_dim=2, n_groups=2, seed=0)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    trained = Trained(encoder, loss, [optimizer])
    name = write_checkpoint(storage, Position(), trained)
    assert storage.names(f"checkpoints/{name}") == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert read_checkpoint(storage, name, trained) == Position()


# ---------------------------------------------------------------- which there are


def test_names_sort_as_the_training_goes() -> None:
    positions = [
        Position(epoch=0, step=5),
        Position(epoch=1),
        Position(epoch=1, step=3),
        Position(epoch=1, step=12),
        Position(epoch=12),
    ]
    names = [position.name for position in positions]
    assert names[1:3] == ["epoch-0001", "epoch-0001-step-000003"]
    assert names == sorted(names)


def test_a_position_becomes_another_one() -> None:
    position = Position(epoch=2, step=3, global_step=23, metrics={"train_loss": 0.25})
    other = Position(epoch=1, global_step=10, stopped="enough")
    position.move_to(other)
    assert position == other and position.name == "epoch-0001"


def test_what_is_known_later_is_added_to_a_checkpoint(storage: Storage) -> None:
    encoder, loss = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(encoder.parameters())
    position = Position(epoch=1, global_step=10, scheduler={"last_epoch": 10})
    trained = Trained(encoder, loss, [optimizer])
    write_checkpoint(storage, position, trained)
    position.stopped = "no improvement"
    amend_checkpoint(storage, position)
    again = read_checkpoint(storage, "epoch-0001", trained)
    assert again == position


def test_latest_is_the_one_with_most_steps(storage: Storage) -> None:
    assert latest_checkpoint(storage) is None
    training = Training(0)
    for epoch, global_step in ((1, 10), (3, 30), (2, 20)):
        training.write(storage, Position(epoch=epoch, global_step=global_step))
    assert latest_checkpoint(storage) == "epoch-0003"


def test_checkpoint_without_its_state_is_invisible(storage: Storage) -> None:
    training = Training(0)
    training.write(storage, Position(epoch=1, global_step=10))
    name = training.write(storage, Position(epoch=2, global_step=20))
    assert latest_checkpoint(storage) == name
    storage.delete(f"checkpoints/{name}/state.json")
    assert latest_checkpoint(storage) == "epoch-0001"


def test_state_is_written_last_and_deleted_first(tmp_path: Path) -> None:
    class Watched(Storage):
        log: list[str]

        def write_bytes(self, name: str, data: bytes) -> None:
            self.log.append(f"write {name.rsplit('/')[-1]}")
            super().write_bytes(name, data)

        def delete(self, name: str) -> None:
            self.log.append(f"delete {name.rsplit('/')[-1]}")
            super().delete(name)

    storage = Watched(str(tmp_path))
    storage.log = []
    Training(0).write(storage, Position(epoch=1))
    assert storage.log[:2] == ["delete state.json", "delete epoch-0001"]
    assert storage.log[-1] == "write state.json"
    storage.log = []
    remove_checkpoints(storage, set())
    assert storage.log == ["delete state.json", "delete epoch-0001"]


def test_writing_a_checkpoint_again_leaves_nothing_of_the_old(storage: Storage) -> None:
    name = Training(0).write(storage)
    storage.write_text(f"checkpoints/{name}/of-the-old", "")
    again = Training(1)
    assert again.write(storage) == name
    assert "of-the-old" not in storage.names(f"checkpoints/{name}")
    read = Training(2)
    read.read(storage, name)
    assert_same_training(read, again)


def test_remove_checkpoints_keeps_what_it_is_told(storage: Storage) -> None:
    training = Training(0)
    for epoch in range(1, 5):
        training.write(storage, Position(epoch=epoch, global_step=epoch))
    storage.write_text("checkpoints/notes.txt", "mine")
    gone = remove_checkpoints(storage, {"epoch-0002", "epoch-0004", "epoch-0009"})
    assert gone == ["epoch-0003", "epoch-0001"]  # newest first: it may refer to others
    assert storage.names("checkpoints") == ["epoch-0002", "epoch-0004", "notes.txt"]
    assert latest_checkpoint(storage) == "epoch-0004"


# ---------------------------------------------------------------- what does not fit


def test_checkpoint_of_another_model_names_what_is_missing(storage: Storage) -> None:
    name = Training(0).write(storage)
    with pytest.raises(
        StorageError, match=rf"(?s)checkpoint {name} does not fit the model: .*weight"
    ):
        load_weights(storage, name, nn.Linear(3, 3))


def test_checkpoint_of_another_optimizer_is_refused(storage: Storage) -> None:
    name = Training(0).write(storage)
    other = Training(0)
    other.optimizer = torch.optim.SGD(other.encoder.parameters(), lr=0.1)
    with pytest.raises(StorageError, match=rf"checkpoint {name} does not fit the optimizer"):
        other.read(storage, name)


def test_checkpoint_of_another_format_is_refused(storage: Storage) -> None:
    name = Training(0).write(storage)
    path = f"checkpoints/{name}/state.json"
    storage.write_text(path, json.dumps(json.loads(storage.read_text(path)) | {"format": 99}))
    with pytest.raises(StorageError, match=r"written by another version of ftray"):
        Training(0).read(storage, name)


@pytest.mark.parametrize("file", ["model", "loss", "optimizer"])
def test_damaged_checkpoint_is_refused_not_unpickled(storage: Storage, file: str) -> None:
    name = Training(0).write(storage)
    storage.write_bytes(f"checkpoints/{name}/{file}.safetensors", b"\x80\x05cos\nsystem\n.")
    with pytest.raises(StorageError, match=rf"The checkpoint {name} is damaged"):
        Training(0).read(storage, name)


# ---------------------------------------------------------------- an average, a second optimizer


def both(training: Training) -> Trained:
    """With an optimizer for the loss, and an average of the weights."""
    own = torch.optim.SGD(training.loss.parameters(), lr=0.1, momentum=0.9)
    alone = torch.optim.AdamW(training.encoder.parameters(), lr=0.01)
    return Trained(training.encoder, training.loss, [alone, own], Average(training.encoder, 0.5))


def steps_of(trained: Trained, *numbers: int) -> None:
    assert trained.average is not None
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        for parameter in (*trained.encoder.parameters(), *trained.loss.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        for optimizer in trained.optimizers:
            optimizer.step()
        trained.average.follow()


def test_two_optimizers_and_an_average_go_on_bit_equal(storage: Storage) -> None:
    first, second = both(Training(0)), both(Training(1))
    steps_of(first, 1, 2, 3)
    name = write_checkpoint(storage, Position(epoch=1, global_step=3), first)
    read_checkpoint(storage, name, second)
    assert first.average is not None and second.average is not None
    second.average.steps = first.average.steps
    for trained in (first, second):
        steps_of(trained, 4, 5)
    assert_same_bits(first.encoder.state_dict(), second.encoder.state_dict())
    assert_same_bits(first.loss.state_dict(), second.loss.state_dict())
    assert_same_bits(first.average.state_dict(), second.average.state_dict())
    for one, other in zip(first.optimizers, second.optimizers, strict=True):
        assert_same_bits(one.state_dict(), other.state_dict())


def test_weights_to_use_are_the_average_and_those_to_go_on_from_are_not(storage: Storage) -> None:
    trained, other, usable = both(Training(0)), both(Training(1)), Net()
    steps_of(trained, 1, 2)
    assert trained.average is not None
    name = write_checkpoint(storage, Position(), trained)
    load_weights(storage, name, usable)
    assert_same_bits(usable.state_dict(), trained.average.weights())
    read_checkpoint(storage, name, other)
    assert_same_bits(other.encoder.state_dict(), trained.encoder.state_dict())
    assert not torch.equal(usable.words.weight, trained.encoder.state_dict()["words.weight"])


def test_a_checkpoint_without_what_is_needed_does_not_fit(storage: Storage) -> None:
    training = Training(0)
    name = training.write(storage)
    wanted = both(training)
    with pytest.raises(StorageError, match="does not fit the optimizer: it has 1 optimizer"):
        read_checkpoint(storage, name, wanted)
    averaged = Trained(training.encoder, training.loss, [training.optimizer], wanted.average)
    with pytest.raises(StorageError, match="has no average of this model's weights"):
        read_checkpoint(storage, name, averaged)
