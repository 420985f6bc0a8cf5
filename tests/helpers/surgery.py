"""Fusing norms, centring and rotating, done densely in memory as an architecture says.

An independent and slow second way to do what the commands do: whole matrices, float64, one
operation after the other. A row of activations x becomes x Q when the stream is rotated.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor

from ctcli.models.architecture import Architecture, NormRole

Tensors = MutableMapping[str, Tensor]


def orthogonal(size: int, seed: int, *, keeps_ones: bool = False) -> Tensor:
    """A random orthogonal matrix, [size, size] float64.

    Args:
        size: its size.
        seed: of the random numbers.
        keeps_ones: whether it maps the all-ones vector to itself, and so commutes with centring.
    """
    generator = torch.Generator().manual_seed(seed)
    if not keeps_ones:
        random: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator).double())[0]
        return random
    # In a basis whose first vector is all ones, leave that one and rotate the others.
    basis = torch.randn(size, size, generator=generator).double()
    basis[:, 0] = 1
    basis, _ = torch.linalg.qr(basis)
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = orthogonal(size - 1, seed + 1)
    kept: Tensor = basis @ inner @ basis.T
    return kept


def unfolded(architecture: Architecture, tensors: Tensors) -> dict[str, Tensor]:
    """All weights in float64, one matrix [out, in] each."""
    own = {name: tensor.double() for name, tensor in tensors.items()}
    for name, view in architecture.views.items():
        whole = own[view.tensor]
        own[name] = whole if view.index is None else whole[view.index]
    for view in architecture.views.values():
        own.pop(view.tensor, None)
    for module in architecture.transposed:
        own[f"{module}.weight"] = own[f"{module}.weight"].T
    return own


def folded(architecture: Architecture, own: Tensors, stored: Tensors) -> dict[str, Tensor]:
    """The same as they were stored."""
    result = dict(own)
    for module in architecture.transposed:
        result[f"{module}.weight"] = result[f"{module}.weight"].T
    for name, view in architecture.views.items():
        part = result.pop(name)
        whole = result.setdefault(view.tensor, torch.zeros(stored[view.tensor].shape).double())
        whole[... if view.index is None else view.index] = part
    return result


def untie(architecture: Architecture, tensors: Tensors) -> None:
    """Give the head a weight of its own."""
    if architecture.tied:
        embedding = tensors[f"{architecture.token_embedding}.weight"]
        tensors[f"{architecture.lm_head}.weight"] = embedding.clone()


def fuse_norms(architecture: Architecture, tensors: Tensors) -> None:
    """Move every gain, and every bias that can, from the norms into the linears behind them."""
    if switch := architecture.bias_switch:
        for linear in switch.linears:
            rows = len(tensors[f"{linear}.weight"])
            tensors[f"{linear}.bias"] = torch.zeros(rows, dtype=torch.float64)
    _fuse(architecture, architecture.norms, tensors)


def _fuse(architecture: Architecture, norms: Sequence[NormRole], tensors: Tensors) -> None:
    for norm in norms:
        gain = tensors[f"{norm.module}.weight"] + architecture.gain_offset
        _fuse_bias(norm, gain, tensors)
        for linear in norm.linears:
            tensors[f"{linear}.weight"] = tensors[f"{linear}.weight"] * gain
        tensors[f"{norm.module}.weight"] = torch.ones_like(gain) - architecture.gain_offset


def _fuse_bias(norm: NormRole, gain: Tensor, tensors: Tensors) -> None:
    """To be called while the linears still have their own weights."""
    if norm.bias is None:
        return
    bias = tensors[f"{norm.module}.bias"]
    if norm.bias == "norm":
        tensors[f"{norm.module}.bias"] = bias / gain
        return
    for linear in norm.linears:
        addend = tensors[f"{linear}.weight"] @ bias
        tensors[f"{linear}.bias"] = tensors[f"{linear}.bias"] + addend
    tensors[f"{norm.module}.bias"] = torch.zeros_like(bias)


def center(architecture: Architecture, tensors: Tensors) -> None:
    """Take the mean out of everything that is written to the stream."""
    for name in architecture.embeddings:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = weight - weight.mean(1, keepdim=True)
    for name in architecture.writers:
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in tensors:
                tensors[part] = tensors[part] - tensors[part].mean(0)


def rotate_stream(architecture: Architecture, tensors: Tensors, rotation: Tensor) -> None:
    """R1: embeddings and writers by `rotation`, readers by its inverse; [hidden, hidden]."""
    for name in architecture.embeddings:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] @ rotation
    for name in architecture.writers:
        for part in (f"{name}.weight", f"{name}.bias"):
            if part in tensors:
                tensors[part] = rotation.T @ tensors[part]
    for name in architecture.readers:
        if name != architecture.lm_head or architecture.project_out is None:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] @ rotation
    for norm in architecture.norms:
        if norm.on_stream and norm.bias is not None:
            tensors[f"{norm.module}.bias"] = tensors[f"{norm.module}.bias"] @ rotation


def rotate_heads(architecture: Architecture, tensors: Tensors, seed: int) -> None:
    """R2: another rotation between v and o for each key head, or one where a norm reads several."""
    _fuse(architecture, architecture.head_norms, tensors)
    for attention in architecture.attentions:
        size, group = attention.v.size, attention.q.heads // attention.v.heads
        for head in range(attention.v.heads):
            rotation = orthogonal(size, seed + head * (not attention.normed))
            rows = attention.v.of(head)
            for part in (f"{attention.v.module}.weight", f"{attention.v.module}.bias"):
                if part in tensors:
                    tensors[part] = tensors[part].clone()
                    tensors[part][rows] = rotation.T @ tensors[part][rows]
            for name in attention.outputs:
                output = tensors[f"{name}.weight"].clone()
                for query in range(head * group, (head + 1) * group):
                    columns = slice(query * size, (query + 1) * size)
                    output[:, columns] = output[:, columns] @ rotation
                tensors[f"{name}.weight"] = output
