"""What a record of a family of language models can say, in the names of their checkpoints.

Module names are relative to a layer, unless a field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ctcli.models.architecture import NormKind, Operation

Refusal = tuple[Operation, str]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of a layer, and what reads it.

    Attributes:
        module: its name.
        feeds: kinds of blocks (`attention`, `mlp`, `mixer`), or modules of blocks or linears; none:
            it normalises what a block writes.
        optional: whether layers may be without it.
        beside: a kind of block that a layer has to have; None: it is in all.
    """

    module: str
    feeds: tuple[str, ...]
    optional: bool = False
    beside: Literal["attention", "mixer"] | None = None


QkvLayout = Literal["separate", "fused", "heads", "groups", "quarters", "latent", "experts"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Where queries, keys and values come from.

    Attributes:
        layout: `separate`: q, k and v linears. `fused`: one linear, all q rows above all k rows
            above all v rows. `heads`: one linear, q, k and v of each head side by side. `groups`:
            one linear, for each key head its queries, then k and v. `quarters`: one linear of four
            parts, in each q rows above v rows above k rows (CodeGen's). `latent`: multi-head latent
            attention (DeepSeek-V2, arXiv:2405.04434): keys without position and values of a head
            side by side in `kv_b_proj`, behind a norm of their own; queries likewise, or straight
            from `q_proj`. `experts`: queries and output of many, of the same keys and values,
            which one linear makes, all k rows above all v rows (arXiv:2404.07413).
        output: the output linear's name.
        module: the block.
        inputs: the linears of queries, keys and values, or the one of all three.
        extras: further linears that read the stream.
        size_of: a norm whose gain is as long as a head; None: config.json tells.
        value_size: config key of the size of a value head, where it differs.
        gated: whether `q_proj` makes a gate beside each query.
        normed: whether an RMSNorm of one or more heads stands before the output linear. One
            rotation of all heads passes it, once its gain is fused.
    """

    layout: QkvLayout = "separate"
    output: str = "o_proj"
    module: str = "self_attn"
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    extras: tuple[str, ...] = ()
    size_of: str | None = None
    value_size: str | None = None
    gated: bool = False
    normed: bool = False


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP that layers may have; `*` in its names stands for the number of an expert."""

    module: str
    inputs: tuple[str, ...] = ("gate_proj", "up_proj")
    output: str = "down_proj"
    routers: tuple[str, ...] = ()  # whatever reads the stream to weigh its output
    latent: str | None = None  # a linear that, where it is there, stands between the stream and it


@dataclass(frozen=True, slots=True)
class Mixer:
    """A state space model, a linear attention or a convolution that layers may have.

    What is between the linears that read the stream and the one that writes it stays as it is.
    """

    module: str
    inputs: tuple[str, ...] = ("in_proj",)
    output: str = "out_proj"


@dataclass(frozen=True)
class Family:
    """What models of a family have in common.

    Attributes:
        norms: norms of a layer.
        attention: how attention is laid out.
        second: another attention block of the same layer.
        mlps: the MLPs a layer may have.
        mixers: what a layer may have beside attention, or instead of it.
        inner_norms: norms inside blocks, and the linears that read them.
        norm_kind: RMSNorm or LayerNorm.
        gain_offset: what the model adds to a stored gain.
        root: what the names of the language model begin with.
        base: prefix of layers, embeddings and final norm, below the root.
        layers: the list of layers, below `base`.
        count: config key of their number.
        embedding: of tokens, below `base`.
        positions: learned embedding of positions, added to the stream, below `base`.
        final_norm: the norm before the head, below `base`.
        head: the head's full name.
        head_bias: whether the head has a bias.
        others: expressions for tensors of a layer that have nothing to do with the stream.
        outer: the same for tensors below `base`.
        stacked: expressions for tensors that hold a matrix for each expert, or are none of a module
            of their own; the matrices are modules `<tensor>.<expert>`.
        biases: vectors with names of their own, and the linears to whose outputs they are added.
        transposed: expressions for modules whose weights are stored [in, out].
        head_dim: where config.json has none; None: hidden_size / num_attention_heads.
        tied: whether the head is tied where config.json does not say.
        bias_switch: config key that gives biases to all linears of the layers.
        affine_switch: config key that takes gains and biases from the norms if it is false.
        refusals: operations that are not exact, beyond what follows from the rest.
        variants: config key and value, and the record that holds instead of this one.
        whole: expressions for linears that servers have no quantization for.
        features: expressions for all linears of towers whose outputs are features in the stream, by
            their full names.
        own_width: whether MLPs may be of another width than config.json's intermediate_size.
    """

    norms: tuple[Norm, ...] = (
        Norm("input_layernorm", ("attention",)),
        Norm("post_attention_layernorm", ("mlp",)),
    )
    attention: Attention | None = Attention()
    second: Attention | None = None
    mlps: tuple[Mlp, ...] = (Mlp("mlp"),)
    mixers: tuple[Mixer, ...] = ()
    inner_norms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    norm_kind: NormKind = "rms"
    gain_offset: float = 0.0
    root: str = "model"
    base: str = ""
    layers: str = "layers"
    count: str = "num_hidden_layers"
    embedding: str = "embed_tokens"
    positions: str | None = None
    final_norm: str | None = "norm"
    head: str = "lm_head"
    head_bias: bool = False
    others: tuple[str, ...] = ()
    outer: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    biases: tuple[tuple[str, str], ...] = ()
    transposed: tuple[str, ...] = ()
    head_dim: int | None = None
    tied: bool = False
    bias_switch: str | None = None
    affine_switch: str | None = None
    refusals: tuple[Refusal, ...] = ()
    variants: tuple[tuple[str, Any, Family], ...] = ()
    whole: tuple[str, ...] = ()
    own_width: bool = False
    features: tuple[str, ...] = ()

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention blocks that a layer may have."""
        return tuple(each for each in (self.attention, self.second) if each)
