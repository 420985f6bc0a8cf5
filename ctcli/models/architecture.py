"""A checkpoint's architecture: which of its modules play which part, by full name.

The residual stream is the vector of `hidden_size` that runs through all layers. Writers add to
it (output rows are the stream), readers multiply it (input columns are the stream). Rotations
R1 to R4 are SpinQuant's (Liu et al., 2024, arXiv:2405.16406); fused norms are QuaRot's and
SliceGPT's (Ashkboos et al., 2024, arXiv:2404.00456 and arXiv:2401.15024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ctcli.errors import CtcliError

Operation = Literal["fuse-norms", "center", "R1", "R2", "R3", "R4"]
NormKind = Literal["rms", "layer"]


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Which output rows of a linear belong to which head.

    Attributes:
        module: the linear.
        heads: how many heads it makes.
        first: first row of head 0.
        stride: rows from one head to the next, or from one group of heads to the next.
        size: rows of a head.
        group: heads that lie side by side.
    """

    module: str
    heads: int
    first: int
    stride: int
    size: int
    group: int = 1

    def of(self, head: int) -> slice:
        """The rows of one head."""
        start = self.first + head // self.group * self.stride + head % self.group * self.size
        return slice(start, start + self.size)

    @property
    def end(self) -> int:
        """The row behind the last one that the heads, and what lies between them, take up."""
        is_dense = self.stride == self.group * self.size
        return (self.first if is_dense else 0) + self.heads // self.group * self.stride


@dataclass(frozen=True, slots=True)
class NormRole:
    """A norm whose gain can move into the linears behind it.

    Attributes:
        module: the norm.
        linears: everything that reads its output.
        on_stream: whether its input is the residual stream, rather than a latent of MLA.
        bias: where a LayerNorm's bias can go; None: it has none. `linears`: into their biases.
            `norm`: they can hold no bias, so it stays, divided by the gain (W (g n + b) =
            W diag(g) (n + b / g)), and takes part in a rotation of the stream.
    """

    module: str
    linears: tuple[str, ...]
    on_stream: bool = True
    bias: Literal["linears", "norm"] | None = None


@dataclass(frozen=True, slots=True)
class AttentionRole:
    """One attention block.

    Attributes:
        module: the block.
        inputs: its linears that read the stream.
        q: rows of the query heads.
        k: rows of the key heads; under MLA only the part without position.
        v: rows of the value heads; `v.size` is what R2 rotates.
        o: the linear that writes the stream; its columns are the query heads, `v.size` each.
        normed: whether an RMSNorm of one or more heads stands before `o`: it lets through one
            rotation of all heads, and no scales of their coordinates.
        others: further linears that read the same heads and write the stream.
    """

    module: str
    inputs: tuple[str, ...]
    q: HeadRows
    k: HeadRows
    v: HeadRows
    o: str
    normed: bool = False
    others: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """All linears that write the stream."""
        return (self.o, *self.others)


@dataclass(frozen=True, slots=True)
class MlpRole:
    """One MLP: a dense one, an expert or a shared expert.

    Attributes:
        module: the block.
        inputs: its linears that read the stream (gate and up, or both in one).
        output: the linear that writes the stream (down); R4 rotates its input.
    """

    module: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class MixerRole:
    """A state space model, a linear attention or a convolution.

    Attributes:
        module: the block.
        inputs: its linears that read the stream.
        output: the linear that writes it.
    """

    module: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class View:
    """Where a matrix lies that is no tensor of its own.

    Attributes:
        tensor: the stored tensor.
        index: which of its matrices, or rows; None: all of it, under another name.
    """

    tensor: str
    index: int | None


@dataclass(frozen=True, slots=True)
class BiasSwitch:
    """A key of config.json that gives biases to linears which have none.

    Attributes:
        key: the key, in the config of the language model.
        linears: those that need a bias, of zeros if nothing else, once it is true.
    """

    key: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The parts of one checkpoint.

    Attributes:
        family: its model type.
        hidden_size: width of the residual stream.
        norm_kind: `rms` (RMSNorm) or `layer` (LayerNorm).
        gain_offset: what the model adds to a stored gain: 0, or 1 for gains of `1 + weight`.
        norms: norms that can be fused, with what reads them.
        kept_norms: norms behind a block, which can be neither fused nor rotated through.
        token_embedding: the embedding of tokens.
        embeddings: embeddings whose rows are added to the stream; [*, hidden_size].
        project_in: a linear between the token embedding and the stream.
        attentions: the attention blocks.
        mlps: the MLPs.
        routers: routers and gates of shared experts: linears that read the stream.
        project_out: a linear between the stream and the head.
        lm_head: the head; it reads the stream unless there is a `project_out`.
        tied: the checkpoint has no weight for the head, which is the token embedding's. It needs
            one of its own before only one of the two is changed, and config.json must say so.
        bias_switch: how linears without biases can be given some.
        refusals: operations that would not be exact, and why.
        mixers: blocks that are neither attention nor MLPs.
        features: linears of towers whose outputs take the place of embeddings, or are added.
        head_bias: whether the head has a bias.
        views: matrices that are stored in tensors of several, by the names of their weights.
        transposed: modules whose weights are stored [in, out].
    """

    family: str
    hidden_size: int
    norm_kind: NormKind
    gain_offset: float
    norms: tuple[NormRole, ...]
    kept_norms: tuple[str, ...]
    token_embedding: str
    embeddings: tuple[str, ...]
    project_in: str | None
    attentions: tuple[AttentionRole, ...]
    mlps: tuple[MlpRole, ...]
    routers: tuple[str, ...]
    project_out: str | None
    lm_head: str
    tied: bool
    bias_switch: BiasSwitch | None
    refusals: Mapping[Operation, str]
    mixers: tuple[MixerRole, ...] = ()
    features: tuple[str, ...] = ()
    head_bias: bool = False
    views: Mapping[str, View] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()

    @property
    def writers(self) -> tuple[str, ...]:
        """Linears whose output rows, and bias, are the residual stream."""
        outputs = (
            *(name for a in self.attentions for name in a.outputs),
            *(mixer.output for mixer in self.mixers),
            *(mlp.output for mlp in self.mlps),
            *self.features,
        )
        return (self.project_in, *outputs) if self.project_in else outputs

    @property
    def readers(self) -> tuple[str, ...]:
        """Linears whose input columns are the residual stream; last, what makes the logits."""
        inputs = [name for attention in self.attentions for name in attention.inputs]
        inputs += [name for mixer in self.mixers for name in mixer.inputs]
        inputs += [name for mlp in self.mlps for name in mlp.inputs]
        return (*inputs, *self.routers, self.project_out or self.lm_head)

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears of all blocks, in the order in which a model of this kind holds them."""
        names = [name for a in self.attentions for name in (*a.inputs, *a.outputs)]
        names += [name for mixer in self.mixers for name in (*mixer.inputs, mixer.output)]
        return (*names, *(name for mlp in self.mlps for name in (*mlp.inputs, mlp.output)))

    @property
    def head_norms(self) -> tuple[NormRole, ...]:
        """Norms between heads and output linears, whose gains R2 does not pass."""
        outputs = {attention.o for attention in self.attentions if attention.normed}
        return tuple(norm for norm in self.norms if not outputs.isdisjoint(norm.linears))

    @property
    def unties_for_stream(self) -> bool:
        """Whether fusing the final norm, or R1, changes the head and the embedding differently."""
        return self.tied and self.project_out is None

    def require(self, *operations: Operation) -> None:
        """Refuse operations that would not be exact.

        Raises:
            CtcliError: names family and reason of each.
        """
        problems = [
            f"{self.family}: {operation} would change the model: {self.refusals[operation]}."
            for operation in operations
            if operation in self.refusals
        ]
        if problems:
            raise CtcliError(problems, "Leave these out; what else was asked for can be done.")
