"""Which axis of which weight is what: hidden channels, MLP neurons, or groups of attention heads.

    read_structure(model, "smollm2").axes
    -> {"model.embed_tokens.weight": (None, Axis("hidden")),
        "model.layers.0.self_attn.q_proj.weight": (Axis("groups", 0), Axis("hidden")),
        "model.layers.0.mlp.down_proj.weight": (Axis("hidden"), Axis("neurons", 0)), ...}

The modules are found by what they hold (q_proj, k_proj, v_proj, o_proj; gate_proj, up_proj, down_proj;
norms as wide as the model), not by class, so Llama, Mistral, Qwen2, Qwen3, SmolLM3, Granite and Gemma fit.
Every weight must find its place: a model with one that nobody knows is refused, never cut at a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kdbench.errors import UsageError
from kdbench.models.pruning import decoder_layers

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads")


@dataclass(frozen=True, slots=True)
class Axis:
    """What lies along one axis of a weight; neurons and groups are a layer's own."""

    role: Literal["hidden", "neurons", "groups"]
    layer: int = 0


Axes = tuple[Axis | None, ...]
HIDDEN = Axis("hidden")


@dataclass(slots=True)
class Structure:
    """The axes of every weight of the state dict, and the modules whose activity counts."""

    hidden: int
    neurons: int
    heads: int
    groups: int  # key-value heads; each serves heads / groups query heads
    head_dim: int
    axes: dict[str, Axes] = field(default_factory=dict)
    norms: dict[str, Any] = field(default_factory=dict)
    final: str = ""  # the norm before the head
    outputs: list[Any] = field(default_factory=list)  # o_proj of each layer: reads the heads
    downs: list[Any] = field(default_factory=list)  # down_proj of each layer: reads the neurons


def read_structure(model: Any, ref: str) -> Structure:
    """The structure of a Llama-like model; its weights may be on the meta device.

    Raises UsageError, which names the part that does not fit, for any other architecture.
    """
    config = model.config
    if not all(isinstance(getattr(config, size, None), int) for size in _SIZES):
        raise _refused(ref, config, f"its config does not name one {' and one '.join(_SIZES)}")
    heads = config.num_attention_heads
    found = Structure(
        hidden=config.hidden_size,
        neurons=config.intermediate_size,
        heads=heads,
        groups=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    names = {id(module): name for name, module in model.named_modules()}
    _read_outer(model, names, found)
    for number, layer in enumerate(decoder_layers(model)):
        _read_layer(number, layer, names, found)
    _check(model, ref, found)
    return found


def _read_outer(model: Any, names: dict[int, str], found: Structure) -> None:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            found.axes[f"{names[id(module)]}.weight"] = (None, HIDDEN)
    decoder = model.get_decoder()
    for child in decoder.children():
        if _read_norm(child, names, found):
            found.final = names[id(child)]


def _read_norm(module: Any, names: dict[int, str], found: Structure) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or tuple(weight.shape) != (found.hidden,):
        return False
    found.norms[names[id(module)]] = module
    found.axes[f"{names[id(module)]}.weight"] = (HIDDEN,)
    return True


def _read_layer(number: int, layer: Any, names: dict[int, str], found: Structure) -> None:
    neurons, groups = Axis("neurons", number), Axis("groups", number)
    for module in layer.children():
        _read_norm(module, names, found)
        if all(hasattr(module, part) for part in _ATTENTION):
            found.outputs.append(module.o_proj)
            for part in ("q_proj", "k_proj", "v_proj"):
                _put(getattr(module, part), (groups, HIDDEN), names, found)
            _put(module.o_proj, (HIDDEN, groups), names, found)
            for part in ("q_norm", "k_norm"):
                _read_head_norm(getattr(module, part, None), names, found)
        if all(hasattr(module, part) for part in _MLP):
            found.downs.append(module.down_proj)
            _put(module.gate_proj, (neurons, HIDDEN), names, found)
            _put(module.up_proj, (neurons, HIDDEN), names, found)
            _put(module.down_proj, (HIDDEN, neurons), names, found)


def _read_head_norm(module: Any, names: dict[int, str], found: Structure) -> None:
    """A norm over one head stays as wide as it was; one over all heads at once is left unknown."""
    weight = getattr(module, "weight", None)
    if weight is not None and tuple(weight.shape) == (found.head_dim,):
        found.axes[f"{names[id(module)]}.weight"] = (None,)


def _put(linear: Any, axes: tuple[Axis, Axis], names: dict[int, str], found: Structure) -> None:
    name = names[id(linear)]
    found.axes[f"{name}.weight"] = axes
    if getattr(linear, "bias", None) is not None:
        found.axes[f"{name}.bias"] = axes[:1]


def _check(model: Any, ref: str, found: Structure) -> None:
    """Every weight is known and as large as the config says. Raises UsageError."""
    sizes: dict[str, set[int]] = {"hidden": {found.hidden}, "neurons": {found.neurons}}
    sizes["groups"] = {found.groups * found.head_dim, found.heads * found.head_dim}
    for name, weight in model.state_dict().items():
        axes = found.axes.get(name)
        if axes is None:
            raise _refused(ref, model.config, f"nothing is known about its weight {name}")
        fits = all(a is None or n in sizes[a.role] for a, n in zip(axes, weight.shape, strict=True))
        if not fits:
            shape = " x ".join(map(str, weight.shape))
            raise _refused(ref, model.config, f"its weight {name} is {shape}, unlike what its config says")
    layers = len(decoder_layers(model))
    if not len(found.outputs) == len(found.downs) == layers or found.heads % found.groups or not found.final:
        raise _refused(ref, model.config, "its layers are not one attention, one gated MLP and their norms")


def _refused(ref: str, config: Any, why: str) -> UsageError:
    return UsageError(
        f"The model '{ref}' ({config.model_type}) cannot be pruned by width, since {why}; "
        "prune it by `layers` only"
    )
