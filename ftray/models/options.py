"""The options of each kind of model, as `model_options` gives them. Light: no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ftray.errors import ConfigError, nearest

__all__ = ["OPTIONS", "ClipOptions", "ConvNetOptions", "ImageOptions", "MLPOptions"]
__all__ += ["ModelOptions", "ModuleOptions", "PointNetOptions", "TextOptions", "TwoTowersOptions"]
__all__ += ["checked", "kept"]

BatchNorm = Literal["frozen", "synced"]
_BATCH_NORM = (
    "Statistics of batch normalisation: those that the weights bring, or those of the whole global "
    "batch, the same on any number of workers."
)


class ModelOptions(BaseModel):
    """What all kinds share: an unknown option is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


LEARNT_P = 3.0
_POOLING_P = Field(
    LEARNT_P,
    ge=1,
    le=100,
    description="Of pooling gem: its exponent at first, 1 the mean, more towards the maximum; it "
    "is learnt.",
)


def _of_gem(p: float, info: ValidationInfo) -> float:
    """Refuse an exponent that nothing would use."""
    pooling = info.data.get("pooling", "gem")
    if p != LEARNT_P and pooling != "gem":
        raise ValueError(f"it belongs to pooling: gem, and not to {pooling}")
    return p


class TextOptions(ModelOptions):
    """A model of sentence-transformers, or of transformers with a mean over its tokens."""

    pooling: Literal[
        "auto", "mean", "max", "cls", "lasttoken", "mean_sqrt_len_tokens", "weightedmean", "gem"
    ] = Field(
        "auto",
        description="How the tokens' features become one vector: sentence-transformers' ways, or "
        "gem, the generalised mean; auto = as the model says.",
    )
    pooling_p: float = _POOLING_P
    prompts: dict[Literal["query", "document"], str] | None = Field(
        None,
        description="What is put before queries and before documents, as {query: 'query: ', "
        "document: 'passage: '}; a role that is not named keeps the model's own.",
    )

    _p_is_of_gem = field_validator("pooling_p")(_of_gem)


class ImageOptions(ModelOptions):
    """A vision model of transformers."""

    pooling: Literal["auto", "pooler", "cls", "mean", "max", "gem"] = Field(
        "auto",
        description="What of the last layer is the embedding: the model's own pooler's output, the "
        "first token, the mean, the maximum, or gem, the generalised mean; auto = pooler if there "
        "is a trained one, else cls.",
    )
    pooling_p: float = _POOLING_P
    image_size: int | None = Field(
        None, ge=8, description="Height and width in pixels; None = as the model was trained."
    )
    batch_norm: BatchNorm = Field("frozen", description=_BATCH_NORM)

    _p_is_of_gem = field_validator("pooling_p")(_of_gem)


class ConvNetOptions(ModelOptions):
    """A small convolutional net, from scratch: a convolution, a norm and ReLU for each stage."""

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (32, 64, 128), min_length=1, description="Channels of each stage; each halves the image."
    )
    downsample: Literal["stride", "maxpool"] = Field(
        "stride", description="How a stage halves the image: convolution of stride 2, or max-pool."
    )
    norm: Literal["batch", "group", "none"] = Field(
        "batch", description="batch: statistics of the whole global batch."
    )
    pooling: Literal["flatten", "mean", "max", "meanmax", "gem"] = Field(
        "flatten",
        description="How the last map of features becomes one vector; gem = the generalised mean.",
    )
    pooling_p: float = _POOLING_P
    output_dim: int | None = Field(
        64, ge=1, description="Width of the embedding, by a linear layer; None = no such layer."
    )
    image_size: int = Field(
        28, ge=4, validate_default=True, description="Height and width in pixels."
    )
    colors: Literal["grey", "rgb"] = Field("grey", description="What images are converted to.")
    background: str = Field("white", description="What transparent pixels are pasted on.")
    invert: bool = Field(False, description="Make ink 1 and paper 0.")
    mean: tuple[float, ...] | None = Field(
        None,
        description="Subtracted from pixels in [0, 1], for all channels or for each; None = 0.5.",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Divides them; None = 0.5."
    )

    @field_validator("background")
    @classmethod
    def _colour(cls, name: str) -> str:
        from PIL import ImageColor

        try:
            ImageColor.getrgb(name)
        except ValueError:
            raise ValueError("a colour is expected, as white, black or '#808080'") from None
        return name

    @field_validator("image_size")
    @classmethod
    def _large_enough(cls, size: int, info: ValidationInfo) -> int:
        stages = len(info.data.get("channels", ()))
        if info.data.get("downsample") == "maxpool" and size < 2**stages:
            raise ValueError(f"{stages} stages that halve it need at least {2**stages} pixels")
        return size

    @field_validator("mean", "std")
    @classmethod
    def _of_each_channel(
        cls, given: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        channels = 3 if info.data.get("colors") == "rgb" else 1
        if given is not None and len(given) not in (1, channels):
            raise ValueError(f"1 number or {channels}, for each channel, is expected")
        return given

    _p_is_of_gem = field_validator("pooling_p")(_of_gem)


class MLPOptions(ModelOptions):
    """A perceptron over vectors of features, as Finetuner's."""

    input_size: int | None = Field(
        None, ge=1, description="Width of the features; None = as the training data has."
    )
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Width of each layer; the last is D."
    )
    bias: bool = True
    activation: Literal["relu", "tanh", "sigmoid"] | None = Field(
        None, description="Between the layers."
    )
    l2: bool = Field(False, description="Divide embeddings by their length.")


class PointNetOptions(ModelOptions):
    """PointNet++ (Qi et al. 2017) with single-scale grouping, from scratch."""

    output_dim: int = Field(512, ge=1, description="Width of the embedding.")
    points: int = Field(1024, ge=16, description="Points drawn of each cloud.")
    width: float = Field(1.0, gt=0, description="Multiplies the width of every layer.")


class ClipOptions(ModelOptions):
    """CLIP, SigLIP and their like, of transformers: two towers in one model."""

    frozen: tuple[Literal["text", "image"], ...] = Field(
        (), max_length=1, description="The tower whose weights are not trained, if any."
    )


class TwoTowersOptions(ModelOptions):
    """Any text model beside any image model, each with a projection to the same width."""

    text: str = Field("minilm", description="A text model: a name, an id or a folder.")
    image: str = Field("vit", description="An image model: a name, an id or a folder.")
    text_options: dict[str, Any] = Field(default_factory=dict)
    image_options: dict[str, Any] = Field(default_factory=dict)
    output_dim: int | None = Field(
        None, ge=1, description="Width of both projections; None = the text model's width."
    )
    frozen: tuple[Literal["text", "image"], ...] = Field(
        (), description="Towers whose weights are not trained; their projections are."
    )


class ModuleOptions(ModelOptions):
    """A torch.nn.Module of one's own."""

    modality: Literal["text", "image", "points", "features"] | None = Field(
        None, description="What its preprocess_fn takes; None = as the training data has."
    )
    embedding_dim: int | None = Field(
        None, ge=1, description="Width of what it gives; None = found by encoding one thing."
    )
    batch_norm: BatchNorm = Field("synced", description=_BATCH_NORM)


OPTIONS: dict[str, type[ModelOptions]] = {
    "text": TextOptions,
    "image": ImageOptions,
    "convnet": ConvNetOptions,
    "mlp": MLPOptions,
    "pointnet": PointNetOptions,
    "clip": ClipOptions,
    "two-towers": TwoTowersOptions,
    "module": ModuleOptions,
}
"""By the kind of the model."""


FORMERLY = {"pooler": "pooling", "pooler_options": "pooling_p"}
"""Names that Finetuner had for options."""


def _hint(option: str, known: Collection[str]) -> str:
    """What may have been meant by the name of no option."""
    if FORMERLY.get(option) in known:
        return f" Finetuner's {option} is called '{FORMERLY[option]}' here."
    return nearest(option, known)


def checked(kind: str, given: dict[str, Any], name: str) -> Any:
    """The options of a model of some kind.

    Raises:
        ConfigError: naming the option, what was given, and the nearest valid one.
    """
    model = OPTIONS[kind]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = _hint(option, model.model_fields)
            raise ConfigError(f"model_options: '{name}' has no option '{option}'.{hint}") from None
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"model_options.{option} = {first['input']!r}: {said[:1].lower()}{said[1:]} "
            f"(of '{name}')"
        ) from None


def kept(
    kind: str,
    facts: Mapping[str, Any],
    given: Mapping[str, Any],
    name: str,
    may_change: tuple[str, ...] = (),
) -> Any:
    """The options of a model that may have been kept with options of its own.

    Args:
        kind: of the model.
        facts: of its `ftray.json`; empty where there is none.
        given: what the user asks for; "auto" asks for no change.
        name: what the user called the model.
        may_change: what another value does no harm to.

    Raises:
        ConfigError: as `checked`, and for a value that is not the one the model was made with.
    """
    own = facts.get("options")
    if own is None:
        return checked(kind, dict(given), name)
    given = {option: value for option, value in given.items() if value != "auto"}
    before, options = checked(kind, own, name), checked(kind, {**own, **given}, name)
    for option in given:
        if option not in may_change and getattr(options, option) != getattr(before, option):
            raise ConfigError(
                f"model_options.{option} = {given[option]!r}: '{name}' was made with "
                f"{getattr(before, option)!r}, which cannot be changed"
            )
    return options
