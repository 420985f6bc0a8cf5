"""`ctcli export-bin`: one .bin file for llama2.c's run.c or runq.c."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.lazy.known import widened
from ctcli.lazy.nodes import (
    Computed,
    Input,
    LazyTensor,
    Node,
    NonFiniteError,
    Output,
    Where,
    axis_of,
    matrix_shape,
    starting_point,
    step_key,
)
from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.rewrites.exporting.checks import obstacles, unread_constants
from ctcli.rewrites.exporting.options import ExportOptions
from ctcli.rewrites.exporting.report import ExportReport, FileTensor
from ctcli.rewrites.exporting.source import Llama, read_llama
from ctcli.rewrites.exporting.tokenizer import TOKENIZER_NAME, Tokenizer, read_tokenizer
from ctcli.storage.llama2c import ROPE_THETA, TABLES, BinFile, Header

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Blocks

_GROUP_SIZE = 64
_FLOATS = ("BF16", "F16", "F32", "F64")


def export_bin(checkpoint: Checkpoint, options: ExportOptions) -> tuple[BinFile, ExportReport]:
    """Lay a Llama out as llama2.c's .bin file.

    Raises:
        CtcliError: the format cannot hold it, or the options do not fit it; lists every reason.
    """
    llama = read_llama(checkpoint)
    header = _header(llama, options)
    tokenizer = Tokenizer(b"", (), ())
    # Not for a vocabulary of two billion tokens that are not there.
    if options.tokenizer and header.vocab_size == llama.rows_of("token_embedding"):
        tokenizer = read_tokenizer(checkpoint.files, header.vocab_size)
    unread = tuple(unread_constants(llama.config))
    refused = () if options.allow_nonstandard else unread
    _check([*obstacles(llama, header)], tokenizer.problems, refused)
    places = _places(llama, header)
    result = BinFile(
        header,
        [part for place in places for part in place.parts.values()],
        {TOKENIZER_NAME: tokenizer.content} if options.tokenizer else {},
        checkpoint.origin,
        warnings=(
            *checkpoint.warnings,
            *unread,
            *_smaller_groups(header, options),
            *tokenizer.caveats,
        ),
    )
    return result, ExportReport(header, places, {})


def _header(llama: Llama, options: ExportOptions) -> Header:
    sizes = llama.config.sizes
    max_seq_len = options.max_seq_len or sizes["max_seq_len"]
    if not max_seq_len:
        raise CtcliError(
            f"{llama.naming.config}: it does not tell for how many positions the model is made.",
            "Give --max-seq-len: the readers make room for so many.",
        )
    dim, hidden_dim = sizes["dim"], sizes["hidden_dim"] or llama.rows_of("w1", 0)
    return Header(
        version=options.version,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        vocab_size=sizes["vocab_size"] or llama.rows_of("token_embedding"),
        max_seq_len=max_seq_len,
        shared_classifier=llama.shares_classifier,
        group_size=_group_size(options, dim, hidden_dim) if options.version == 2 else None,
    )


def _group_size(options: ExportOptions, dim: int, hidden_dim: int) -> int:
    if options.group_size:
        return options.group_size
    size = _GROUP_SIZE
    while dim % size or hidden_dim % size:
        size //= 2
    return size


def _smaller_groups(header: Header, options: ExportOptions) -> Iterator[str]:
    if header.group_size not in (None, options.group_size, _GROUP_SIZE):
        yield (
            f"group size {header.group_size}: {_GROUP_SIZE} does not divide both dim "
            f"{header.dim} and hidden_dim {header.hidden_dim}."
        )


def _check(
    obstacles: list[str], unfit_tokenizers: tuple[str, ...], unread: tuple[str, ...]
) -> None:
    """Refuse what the format cannot hold, with a hint for each kind of reason."""
    hints = {
        "The format cannot hold this model as it is.": obstacles,
        "Leave --tokenizer out to export the weights alone.": unfit_tokenizers,
        "For a patched reader, --allow-nonstandard lets a RoPE base or an eps through.": unread,
    }
    if problems := [problem for reasons in hints.values() for problem in reasons]:
        raise CtcliError(problems, " ".join(hint for hint, reasons in hints.items() if reasons))


def _places(llama: Llama, header: Header) -> list[FileTensor]:
    """The file's tensors in order."""
    places = []
    offset = len(header.encode())
    tables = dict(_tables(header)) if header.version == 0 else {}
    for name, layer in header.tensors():
        if name in tables:
            place = FileTensor(name, None, name, {name: tables[name]}, offset)
        else:
            source = llama.naming.name(name, layer)
            module = source.removesuffix(".weight")
            granule = _granule(llama, header, name)
            parts = _parts(module, llama.tensors[source], granule, header.group_size)
            place = FileTensor(name, layer, module, parts, offset)
        places.append(place)
        offset += place.nbytes
    return places


def _granule(llama: Llama, header: Header, name: str) -> int:
    """Rows that belong together: a head's, where their order changes."""
    reordered = llama.naming.split_halves and name in ("wq", "wk")
    return header.dim // header.n_heads if reordered else 1


def _tables(header: Header) -> Iterator[tuple[str, Known]]:
    from ctcli.ops.rope import angle_tables

    half = header.dim // header.n_heads // 2
    spec = TensorSpec("F32", (header.max_seq_len, half))
    tables = angle_tables(header.max_seq_len, 2 * half, ROPE_THETA)
    for name, table in zip(TABLES, tables, strict=True):
        yield name, Known(spec, table.astype("<f4").tobytes())


def _parts(
    module: str, tensor: LazyTensor, granule: int, group_size: int | None
) -> Mapping[str, LazyTensor]:
    """What stands for a tensor: itself in float32, or a matrix's codes and scales."""
    spec, exact = tensor.spec, starting_point(tensor)
    grouped = group_size if len(spec.shape) == 2 else None
    if exact is None or (spec.dtype == "F32" and granule == 1 and not grouped):
        return {module: widened(tensor) if isinstance(tensor, Known) else tensor}
    shape, tag = matrix_shape(exact.spec.shape), exact.spec.dtype
    outputs = {"values": Output(TensorSpec("F32", spec.shape), is_whole=len(spec.shape) == 1)}
    kernel: Widen | QuantizeQ80 = Widen(tag, granule)
    if grouped:
        rows, columns = spec.shape
        outputs = {
            "codes": Output(TensorSpec("I8", (rows, columns))),
            "scales": Output(TensorSpec("F32", (rows, columns // grouped))),
        }
        kernel = QuantizeQ80(tag, granule, grouped)
    node = Node(
        key=step_key(module, "weight", exact, "export"),
        module=module,
        shape=shape,
        inputs={"weight": Input(exact, shape)},
        outputs=outputs,
        kernel=kernel,
        granule=(granule, grouped or 1),
        axis=axis_of(exact),
        measure="max",
    )
    return {f"{module}.{output}": Computed(node, output) for output in outputs}


@dataclass(frozen=True)
class QuantizeQ80:
    """Codes and scales of a matrix; it measures the largest absolute error.

    Attributes:
        tag: safetensors tag of the blocks.
        granule: rows of a head whose order changes; 1: none does.
        group_size: elements under one scale.
    """

    tag: str
    granule: int
    group_size: int

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`.

        Raises:
            NonFiniteError: the matrix holds NaN or infinities.
        """
        import numpy as np

        from ctcli.ops.q80 import quantize_q80
        from ctcli.ops.rope import interleave_halves

        codes, scales, error = quantize_q80(blocks["weight"], self.tag, self.group_size)
        if not np.isfinite(scales).all():
            raise NonFiniteError("Repair the checkpoint.")
        if self.granule > 1:
            # Groups lie inside rows, so that the order of the rows can wait for the smaller codes.
            codes = interleave_halves(codes, self.granule)
            scales = interleave_halves(scales, self.granule)
        return {"codes": codes, "scales": scales}, (error,)


@dataclass(frozen=True)
class Widen:
    """Rows in float32; there is nothing to measure."""

    tag: str
    granule: int

    def __call__(self, blocks: Blocks, _where: Where) -> tuple[Blocks, Sequence[float]]:
        """See `Kernel`."""
        from ctcli.ops.edits import edited
        from ctcli.ops.rope import interleave_halves

        values, _ = edited(blocks["weight"], self.tag, "F32")
        if self.granule > 1:
            values = interleave_halves(values, self.granule)
        return {"values": values}, ()
