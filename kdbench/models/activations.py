"""What goes on inside a decoder: the states behind chosen layers, and one layer's queries, keys and values.

    inside = Inside(layers_at("smollm2", model, [-1]), projections_at("smollm2", model, 20))
    with inside.caught() as found:
        hidden = hidden_rows(model, inputs)
    seen = inside.seen(found, hidden.split([31, 12]), prompts=[9, 20])
    seen[0].states[0]       # [31, 576], at the rows of the first sequence
    seen[0].attention[1]    # [39, 192], its keys, from its first position to its last row

Queries, keys and values are what q_proj, k_proj and v_proj give, adapters included, all heads side by side:
before rotary positions are turned in and before a norm over heads. With grouped queries a model has fewer
keys and values than queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.models.rows import decoder_of

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Seen:
    """One sequence as a model saw it.

    `hidden` [n, H] are the final hidden states at its n rows, `states` those behind each chosen layer, and
    `attention` queries, keys and values [L, D], of which the last n are the rows.
    """

    hidden: Tensor
    states: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()

    def copy(self) -> Seen:
        """The same in memory of its own: a view would keep the whole of a batch alive."""
        return Seen(
            self.hidden.clone(),
            tuple(one.clone() for one in self.states),
            tuple(one.clone() for one in self.attention),
        )


@dataclass(frozen=True, slots=True)
class Inside:
    """The modules of a model that are looked into: whole layers, and the projections of one."""

    layers: tuple[Any, ...]
    projections: tuple[Any, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers in a query, a key and a value, over all heads."""
        return tuple(one.out_features for one in self.projections)

    @contextmanager
    def caught(self) -> Iterator[dict[Any, Tensor]]:
        """What each module gives in a forward pass made meanwhile, [B, L, ...]."""
        found: dict[Any, Tensor] = {}

        def keep(module: Any, _: Any, output: Any) -> None:
            found[module] = output[0] if isinstance(output, tuple) else output

        hooks = [one.register_forward_hook(keep) for one in {*self.layers, *self.projections}]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def seen(
        self, found: Mapping[Any, Tensor], hidden: Sequence[Tensor], prompts: Sequence[int]
    ) -> list[Seen]:
        """What was caught, by sequence: `hidden` [n, H] of each, and the tokens of their prompts."""
        return [self._of_one(found, i, *one) for i, one in enumerate(zip(hidden, prompts, strict=True))]

    def _of_one(self, found: Mapping[Any, Tensor], i: int, hidden: Tensor, prompt: int) -> Seen:
        first, end = prompt - 1, prompt - 1 + len(hidden)
        return Seen(
            hidden,
            tuple(found[one][i, first:end] for one in self.layers),
            tuple(found[one][i, :end] for one in self.projections),
        )


def layers_at(name: str, model: Any, numbers: Sequence[int]) -> tuple[Any, ...]:
    """The decoder layers of these numbers, counted from 0, or from the end with -1.

    Raises ConfigError, which calls the model `name`, for a layer that does not exist.
    """
    layers = getattr(decoder_of(model), "layers", None)
    if layers is None:
        raise ConfigError(
            f"The model '{name}' ({model.config.model_type}) keeps its layers elsewhere than in a list named "
            "`layers`, and what goes on inside it is not known; use white_box"
        )
    for number in numbers:
        if not -len(layers) <= number < len(layers):
            raise ConfigError(
                f"The model '{name}' has no layer {number}: it has {len(layers)}, which are 0 to "
                f"{len(layers) - 1}, or -1 to {-len(layers)} from the end"
            )
    return tuple(layers[number] for number in numbers)


def projections_at(name: str, model: Any, number: int) -> tuple[Any, ...]:
    """The modules that give a layer's queries, keys and values.

    Raises ConfigError for a layer that does not exist or whose attention has none.
    """
    (layer,) = layers_at(name, model, [number])
    for module in layer.children():
        if all(hasattr(module, one) for one in _PROJECTIONS):
            return tuple(getattr(module, one) for one in _PROJECTIONS)
    raise ConfigError(
        f"The attention of the model '{name}' ({model.config.model_type}) has no q_proj, k_proj and v_proj "
        "of its own in that layer, so its relations cannot be compared; set relation_share = 0 and name "
        "hidden_layers, or use white_box"
    )
