"""What every encoder is: things of some modalities in, embeddings out, and back to a folder."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftray.media import MEDIA_SIZE, Content, Modality
from ftray.models.layout import Layout

if TYPE_CHECKING:
    from ftray.models.lora import Adapter

__all__ = ["BRANCH", "KEPT", "Draws", "Encoder", "Features", "Item", "joined", "linear_head"]

HEAD = "head.safetensors"
HEAD_NOTE = (
    f"Embeddings are those of the model times the weight in {HEAD}: ftray applies it, and other "
    "libraries load the model without it."
)

KEPT, BRANCH = "kept", "branch"
"""The inputs of a forward of features that were computed before, and of which branch they are."""

Item = tuple[str, Content]
"""(role, content); the role is "query", "document" or "", or the name of a tower."""

Draws = npt.NDArray[np.uint64]
"""One random seed for each item, for augmentation: they depend on the step, not on the worker."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Items made ready to be encoded: tokenised or decoded, and laid out.

    Attributes:
        forwards: one dict of inputs per forward pass.
        order: position in the batch of each row of the forwards, one after the other, `(n,)`.
        tokens: real tokens; other things than texts have none. processed_tokens: with padding.
    """

    forwards: list[dict[str, Any]]
    order: Tensor
    tokens: int = 0
    processed_tokens: int = 0


class Encoder(nn.Module, ABC):
    """Things to embeddings `(n, D)`.

    Attributes:
        kind: what `ftray.json` of a folder calls this class.
        name: what the user called the model, for messages.
        modalities: what it takes.
        learning_rate: what is taken where the user gives none.
        adapters: the low-rank adapters that were put into it; see `ftray.models.lora`.
        couples_rows: whether the embedding of a row depends on the others of its forward, in
            training: batch normalisation whose statistics are not frozen.
        not_packed: why texts are not packed (`ftray.models.packing`); "" where they can be.
        heads: a linear layer behind `encode` for each of `branches`; empty without a head.
        at_rest: modules that stay in evaluation mode, as all their weights are frozen.
        unused: modules that no embedding depends on; they are never trained.
    """

    kind: ClassVar[str]
    modalities: frozenset[Modality]
    couples_rows: bool = False
    not_packed: str = "only text encoders of sentence-transformers are"
    learning_rate: ClassVar[float] = 5e-5
    adapters: list[Adapter]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.adapters = []
        self.heads = nn.ModuleDict()
        self.at_rest: list[nn.Module] = []
        self.unused: list[nn.Module] = []

    @property
    @abstractmethod
    def own_dim(self) -> int:
        """Width of what `encode` gives."""

    @property
    def embedding_dim(self) -> int:
        """Width D of an embedding."""
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            return head.out_features
        return self.own_dim

    @property
    def backbones(self) -> dict[str, nn.Module]:
        """The models of transformers in it, by a name; that of the only one is ""."""
        return {}

    @property
    def static_embeddings(self) -> list[nn.Module]:
        """Embeddings of tokens that stand where others have a model of transformers."""
        return []

    def leave_unused(self, modules: Iterable[nn.Module | None]) -> None:
        """Freeze modules that no embedding depends on, such as a pooler that is passed over.

        They stay in the artifact as they are. To the optimizer, to whoever counts what is trained,
        and to a check that anything is, they would else be weights like others.
        """
        self.unused = [module for module in modules if module is not None]
        for module in self.unused:
            module.requires_grad_(False)

    @property
    def trained_parts(self) -> tuple[Encoder, ...]:
        """Itself, or those of its towers that are trained and are encoders of their own."""
        return (self,)

    def measure(self, content: Content) -> None:
        """Find out the width D where it takes an input to know; called before training."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def roles_differ(self) -> bool:
        """Whether a thing is encoded differently as query and as document."""
        return False

    @property
    def towers(self) -> tuple[str, ...]:
        """What an evaluation may name as its `model`; none where there is one tower."""
        return ()

    @property
    def default_tower(self) -> str | None:
        """Of two towers for the same modality, the one of things without a role; else None."""
        return None

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text that are not cut; None without a limit, and without texts."""
        return None

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has; asked of encoders with a limit."""
        raise TypeError(f"'{self.name}' takes no texts")

    def cost(self, content: Content) -> int:
        """How much a thing is to encode, beside others; ranks get equal shares."""
        return len(content) if isinstance(content, str) else MEDIA_SIZE

    def coupled(self, content: Content) -> bool:
        """Whether a thing's embedding depends on others of the step, in training."""
        return self.couples_rows

    @abstractmethod
    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Tokenise or decode, and lay out; touches no weights, so another process may do it.

        Args:
            items: what to encode, `n` of them; may be none.
            layout: which texts share a forward.
            draws: seeds of augmentation, `(n,)`; None = none is done, as in evaluation.

        Raises:
            DataError: for a thing that cannot be decoded, with its name.
        """

    @abstractmethod
    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """What the model gives in one forward pass, `(rows, own_dim)`, before there is a head.

        The inputs are on its device.
        """

    @property
    def branches(self) -> tuple[str, ...]:
        """What has a head of its own: each tower, where there are two."""
        return ("all",)

    def branch_of(self, inputs: dict[str, Any]) -> str:
        """Through which of the branches a forward goes."""
        return self.branches[0]

    def finished(self, embeddings: Tensor) -> Tensor:
        """What comes after the head, such as a normalisation: `(rows, D)` to `(rows, D)`."""
        return embeddings

    def embed(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass, `(rows, D)`: `encode`, the head, and what follows it.

        Of a forward of kept features (`ftray.models.frozen`), what comes after these alone.
        """
        if KEPT in inputs:
            return self.last_part(inputs[KEPT], inputs[BRANCH])
        found = self.encode(inputs)
        if self.heads:
            found = self.heads[self.branch_of(inputs)](found)
        return self.finished(found)

    def varies(self, content: Content) -> bool:
        """Whether training may make another thing of a thing in each step: by augmentation."""
        return True

    @property
    def frozen_branches(self) -> tuple[str, ...]:
        """The branches whose weights before the head are all frozen, with dropout off."""
        resting = set(map(id, self.at_rest))
        return self.branches if resting.issuperset(map(id, self.children())) else ()

    def is_fixed(self, content: Content) -> bool:
        """Whether `first_part` gives the same of a thing in every step of training."""
        return self.branch_of_content(content) in self.frozen_branches and not self.varies(content)

    def branch_of_content(self, content: Content) -> str:
        """Through which of the branches a thing goes."""
        return self.branches[0]

    def first_part(self, inputs: dict[str, Any]) -> Tensor:
        """Where a thing is fixed: what no trained weight has touched yet, `(rows, F)`."""
        return self.encode(inputs)

    def last_part(self, features: Tensor, branch: str) -> Tensor:
        """The embeddings of what `first_part` gave of things of a branch: `(rows, F)` to D."""
        if self.heads:
            features = self.heads[branch](features)
        return self.finished(features)

    @torch.no_grad()
    def fixed_features(self, features: Features) -> Tensor:
        """What `first_part` gives, `(n, F)`, in the order of the items given to `collate`."""
        parts = [self.first_part(self._moved(inputs)) for inputs in features.forwards]
        return self._in_order(parts, features.order)

    def attach_head(self, dim: int) -> None:
        """Put a linear layer, drawn from torch's random state, behind the model; the same for all.

        Args:
            dim: the width D of embeddings from now on.
        """
        head = linear_head(self.own_dim, dim)
        self.heads.update({branch: copy.deepcopy(head) for branch in self.branches})

    @property
    def head_prefix(self) -> str | None:
        """How the names of a head's weights begin; None without a head that ftray attached."""
        return "heads." if self.heads else None

    def adopt_head(self, facts: Mapping[str, Any], folder: Path) -> None:
        """Take up the head that a folder of ftray's has.

        Args:
            facts: as `save_head` gave them.
            folder: that it wrote.
        """
        self.attach_head(int(facts["dim"]))
        self.heads.load_state_dict(load_file(folder / HEAD))

    def save_head(self, folder: Path) -> dict[str, Any] | None:
        """Write the head into a folder; returns what `ftray.json` says of it, None without one."""
        if not self.heads:
            return None
        weights = {name: value.contiguous() for name, value in self.heads.state_dict().items()}
        save_file(weights, folder / HEAD)
        return {"dim": self.embedding_dim, "file": HEAD}

    @property
    def caveat(self) -> str:
        """What other libraries need to give equal embeddings of its artifact; "" = nothing."""
        return HEAD_NOTE if self.heads else ""

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; what is at rest stays in the latter."""
        super().train(mode)
        for module in self.at_rest:
            module.eval()
        return self

    def freeze(self, weight: str) -> None:
        """Leave a weight as it is, by its name in the model that is saved."""
        self.get_parameter(weight).requires_grad_(False)

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write the model into a folder, weights as safetensors.

        Returns:
            What `ftray.json` must say beside the kind for `load_encoder` to make it again.
        """

    def forward(self, features: Features) -> Tensor:
        """Embeddings `(n, D)` in the order of the items given to `collate`; n may be 0.

        They are never of half precision, whatever autocast gives: ranks with items and ranks
        without exchange equal types.
        """
        if not features.forwards:
            dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
            return torch.zeros(0, self.embedding_dim, dtype=dtype, device=self.device)
        parts = [self.embed(self._moved(inputs)) for inputs in features.forwards]
        return self._in_order(parts, features.order)

    def _in_order(self, parts: list[Tensor], order: Tensor) -> Tensor:
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        joint = torch.cat([part.to(dtype) for part in parts])
        return joint[torch.argsort(order).to(joint.device)]

    def _moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        dtype = next(self.parameters()).dtype
        return {name: _moved(value, self.device, dtype) for name, value in inputs.items()}


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor on the device, numbers in the type of the weights; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return value.to(device, dtype, non_blocking=True)
    return value.to(device, non_blocking=True)


def linear_head(width: int, dim: int) -> nn.Linear:
    """A linear layer without bias, orthogonal at first, from torch's random state.

    Its rows, or where it widens its columns, are orthonormal: wider or as wide it keeps all angles
    between embeddings, and narrower it is a random projection, which keeps them about as well as
    any (Johnson and Lindenstrauss 1984). There is no activation, and no batch normalisation, which
    Finetuner's head had: the embedding of a row would depend on the others of its batch, so that
    micro batches and workers would change the mathematics.
    """
    layer = nn.Linear(width, dim, bias=False)
    nn.init.orthogonal_(layer.weight)
    return layer


def joined(parts: Sequence[tuple[Sequence[int], Features]]) -> Features:
    """One batch from several, each with the positions of its items in the whole."""
    order = [
        torch.as_tensor(list(positions), dtype=torch.long)[features.order]
        for positions, features in parts
        if len(features.order)
    ]
    return Features(
        forwards=[inputs for _, features in parts for inputs in features.forwards],
        order=torch.cat(order) if order else torch.zeros(0, dtype=torch.long),
        tokens=sum(features.tokens for _, features in parts),
        processed_tokens=sum(features.processed_tokens for _, features in parts),
    )
