"""Tensors that hold several matrices, such as all experts of a layer: taken apart, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctcli.lazy.nodes import Computed, LazyTensor, Stacked
from ctcli.lazy.tensors import Known, Stored, TensorSpec
from ctcli.models.architecture import View


def unstacked(
    tensors: Mapping[str, LazyTensor], views: Mapping[str, View]
) -> dict[str, LazyTensor]:
    """Tensors with each matrix by its own name, in place of those that hold several.

    Args:
        tensors: by name.
        views: where each matrix lies, by its name.
    """
    if not views:
        return dict(tensors)
    whole = {view.tensor for view in views.values()}
    parts = {name: _part(tensors[view.tensor], view.index) for name, view in views.items()}
    return {name: tensor for name, tensor in tensors.items() if name not in whole} | parts


def _part(tensor: LazyTensor, index: int | None) -> LazyTensor:
    if index is None:
        return tensor
    if isinstance(tensor, Stacked):
        return tensor.parts[index]
    spec = TensorSpec(tensor.spec.dtype, tensor.spec.shape[1:])
    first = index * spec.nbytes
    if isinstance(tensor, Stored):
        return Stored(spec, tensor.file, tensor.start + first)
    assert isinstance(tensor, Known), "experts are stored, or computed one by one"
    return Known(spec, tensor.content[first : first + spec.nbytes])


def stacked(spec: TensorSpec, tag: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """The tensor of that shape which holds these, one below the other.

    Args:
        spec: dtype and shape of the tensor before.
        tag: safetensors tag of its dtype now.
        parts: its matrices; one alone that is as large as all of it is it.
    """
    if parts[0].spec.shape == spec.shape:
        return parts[0]
    computed = [part for part in parts if isinstance(part, Computed)]
    assert len(computed) == len(parts), "all experts change, or none"
    return Stacked(TensorSpec(tag, spec.shape), tuple(computed))
