"""What a checkpoint says of itself: its config, and its tensors' shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.models.checking import Shapes
from ctcli.models.config import Section

# Other keys of the same size, in the configs of older models.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model", "embedding_dim"),
    "num_hidden_layers": ("n_layer", "num_layers", "n_layers", "num_blocks"),
    "num_attention_heads": ("n_head", "num_heads", "n_heads", "attention_heads"),
    "num_key_value_heads": ("num_kv_heads",),
    "head_dim": ("attention_head_dim",),
}


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a checkpoint says of itself: the language model's config, and its tensors' shapes."""

    text: Mapping[str, Any]
    shapes: Shapes

    def number(self, key: str) -> int:
        """A size that config.json has to give.

        Raises:
            CtcliError: it does not.
        """
        found = next((k for k in (key, *ALIASES.get(key, ())) if self.text.get(k)), key)
        return Section("config.json", self.text).needed_size(found)

    def optional(self, key: str) -> int | None:
        """The same for a size that config.json may leave out; None: it does."""
        given = any(self.text.get(k) for k in (key, *ALIASES.get(key, ())))
        return self.number(key) if given else None

    @property
    def head_dim(self) -> int:
        """Size of an attention head, by its own key or by the width and number of heads."""
        size = self.optional("head_dim")
        return size or max(1, self.number("hidden_size") // self.number("num_attention_heads"))

    def has(self, module: str) -> bool:
        """Whether a module has a weight."""
        return f"{module}.weight" in self.shapes

    def size(self, module: str, dimension: int) -> int:
        """Rows (0) or columns (1) of a module's weight; 0 if there is none."""
        shape = self.shapes.get(f"{module}.weight", ())
        return shape[dimension] if dimension < len(shape) else 0
