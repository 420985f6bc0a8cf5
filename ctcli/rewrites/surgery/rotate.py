"""`ctcli rotate`: rotations of the residual stream (R1), between values and output (R2), of the
MLPs' inner activations (R4, online) and of queries and keys (R3, online), as SpinQuant names them
(Liu et al. 2024, arXiv:2405.16406).

R1 and R2 leave an ordinary checkpoint that computes the same. R3 and R4 need a server that rotates
activations while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.models.architecture import Architecture
from ctcli.models.modules import modules_of
from ctcli.rewrites.surgery.edits import Arithmetic
from ctcli.rewrites.surgery.fuse_norms import SurgeryReport, finish, fuse, write_stream
from ctcli.rewrites.surgery.kernels import RowMap
from ctcli.rewrites.surgery.learning import LearnedRotation, Learning, rotations_file
from ctcli.rewrites.surgery.matrices import Matrices
from ctcli.rewrites.surgery.online import apply, matrix, scheme, transforming
from ctcli.rewrites.surgery.options import RotateOptions
from ctcli.rewrites.surgery.surgery import Surgery, architecture_of, begin, editable
from ctcli.rewrites.surgery.transform_config import transform

if TYPE_CHECKING:
    from ctcli.ops.rotation import Rotation

    AnyRotation = Rotation | LearnedRotation

# The type of matrices that readers take from the checkpoint.
_SAVED = "random-hadamard"
_READERS = {
    "R3": "R3 is done by the server: vLLM leaves it out, which changes nothing; transformers, too, "
    "but it loads such a checkpoint only once it is quantized.",
    "R4": "Online rotations need a server that rotates activations. vLLM does, on GPUs, without "
    "tensor parallelism and for linears without bias; transformers does not: it fails to load the "
    "checkpoint, and computes something else once it is quantized.",
}


def rotate(checkpoint: Checkpoint, options: RotateOptions) -> tuple[Checkpoint, SurgeryReport]:
    """Fuse the norms, then rotate: readers become W Q, writers Q^T W.

    Raises:
        CtcliError: weights cannot be read, an operation is not exact for the family, or there is no
            such matrix.
    """
    result, report = _rotated(editable(checkpoint), options)
    return result, replace(report, bytes_before=checkpoint.nbytes)


def _rotated(checkpoint: Checkpoint, options: RotateOptions) -> tuple[Checkpoint, SurgeryReport]:
    architecture, chosen = architecture_of(checkpoint, options.parts), options.chosen
    if options.transforms:
        return _transformed(checkpoint, architecture, options)
    architecture.require(*(("fuse-norms",) if "R1" in chosen else ()), *chosen)
    unties = "R1" in chosen and architecture.unties_for_stream
    surgery = begin("rotate", checkpoint, architecture, unties)
    matrices = Matrices(
        architecture,
        options.made_as,
        options.seed,
        options.randomize,
        options.block_size,
        options.learned,
    )
    changes = []
    learning = Learning(surgery, options.learning_steps, options.seed or 0)
    norms = architecture.norms if "R1" in chosen else architecture.head_norms
    if "R1" in chosen or ("R2" in chosen and norms):
        changes.append(("norms fused", str(fuse(surgery, norms))))
    if "R1" in chosen:
        start = matrices.stream()
        stream = learning.stream(start) if options.learns else start
        rotate_stream(surgery, stream)
        changes.append(("R1", stream.description))
    if "R2" in chosen:
        values: dict[str, AnyRotation] = {}
        for each in architecture.attentions:
            start = matrices.values(each)
            values[each.module] = learning.values(each, start) if options.learns else start
        rotate_values(surgery, values)
        changes.append(("R2", _words(values.values())))
    if learning.rotations:
        changes.append(("to learn", learning.words))
    arithmetic = Arithmetic(options.precision, options.device)
    online = [*_rotate_keys(surgery, matrices, options), *_rotate_inner(surgery, matrices, options)]
    changes += [(name, f"{words}, online") for name, words, _ in online]
    result, report = finish(
        checkpoint, surgery, arithmetic, None, options.max_shard_size, options.step, changes
    )
    if learning.rotations:
        beside = (rotations_file(learning.rotations),)
        preparations = (*result.preparations, learning)
        result = replace(result, beside=beside, preparations=preparations)
    if online:
        schemes = _offline_schemes(architecture, options)
        schemes |= {name: scheme for name, _, scheme in online}
        warnings = [_READERS[name] for name, _, _ in online]
        result = replace(result, warnings=(*result.warnings, *warnings))
        result = result.with_config(transforming(result.config, schemes))
    return result, report


def _transformed(
    checkpoint: Checkpoint, architecture: Architecture, options: RotateOptions
) -> tuple[Checkpoint, SurgeryReport]:
    """What a TransformConfig asks for; norms stay as they are."""
    ends = (architecture.token_embedding, architecture.lm_head)
    unties = any(scheme.folds(module) for scheme in options.transforms for module in ends)
    surgery = begin("rotate", checkpoint, architecture, unties)
    changes = transform(surgery, options.transforms, options.seed, options.save_online_weights)
    arithmetic = Arithmetic(options.precision, options.device)
    result, report = finish(
        checkpoint, surgery, arithmetic, None, options.max_shard_size, options.step, changes
    )
    if any(scheme.is_online for scheme in options.transforms):
        result = replace(result, warnings=(*result.warnings, _READERS["R4"]))
        result = result.with_config(
            transforming(result.config, {s.name: s.declaration for s in options.transforms})
        )
    return result, report


def rotate_stream(surgery: Surgery, rotation: AnyRotation) -> None:
    """R1: what is written into the residual stream, and what reads it."""
    write_stream(surgery, rotation)
    for reader in surgery.architecture.readers:
        surgery.columns[reader].append(rotation)
    for norm in surgery.architecture.norms:
        if norm.bias == "norm" and norm.on_stream:
            surgery.columns[f"{norm.module}.bias"].append(rotation)


def rotate_values(surgery: Surgery, rotations: Mapping[str, AnyRotation]) -> None:
    """R2: value heads, and the columns of the output linear that read them."""
    for attention in surgery.architecture.attentions:
        rotation = rotations[attention.module]
        surgery.rows[attention.v.module].append(RowMap(rotation, attention.v))
        for output in attention.outputs:
            surgery.columns[output].append(rotation)


def _rotate_inner(
    surgery: Surgery, matrices: Matrices, options: RotateOptions
) -> list[tuple[str, str, dict[str, Any]]]:
    """R4: the columns of every MLP's output linear, whose input the server rotates."""
    if "R4" not in options.chosen:
        return []
    outputs = [mlp.output for mlp in surgery.architecture.mlps]
    used: dict[int, Rotation] = {}
    for module in outputs:
        weight = surgery.stored[f"{module}.weight"]
        size = weight.spec.shape[1]
        rotation = matrices.inner(size)
        surgery.columns[module].append(rotation)
        once = matrices.inner(options.block_size or size)
        if once.size not in used:
            used[once.size] = once
            surgery.added[f"{module}.weight"] |= matrix(f"{module}.R4_input", once)
    # A tower, or a layer for multi-token prediction, may have linears of the same names.
    names = tuple({module.rpartition(".")[2] for module in outputs})
    modules = modules_of(surgery.stored, {})
    ignore = sorted(m for m in modules.keys() - {*outputs} if m.endswith(names))
    places = [
        apply(outputs, "input", ignore=ignore),
        apply(outputs, "weight_input", inverse=True, ignore=ignore),
    ]
    declared = scheme(_declared_type(options, used), options.block_size, places)
    return [("R4", _words(used.values()), declared)]


def _rotate_keys(
    surgery: Surgery, matrices: Matrices, options: RotateOptions
) -> list[tuple[str, str, dict[str, Any]]]:
    """R3: queries and keys, which the server rotates both; weights stay."""
    if "R3" not in options.chosen:
        return []
    attentions = surgery.architecture.attentions
    used: dict[int, Rotation] = {}
    for attention in attentions:
        size = attention.q.size
        if size not in used:
            used[size] = matrices.keys(size)
            if options.save_online_weights:
                home = f"{attention.q.module}.weight"
                name = f"{attention.module}.R3_q_attn"
                surgery.added[home] |= matrix(name, used[size])
    modules = [attention.module for attention in attentions]
    places = [apply(modules, "q_attn"), apply(modules, "k_cache")]
    declared = scheme(_declared_type(options, used), attentions[0].q.size, places)
    return [("R3", _words(used.values()), declared)]


def _declared_type(options: RotateOptions, sizes: Iterable[int]) -> str:
    """Readers make the matrix of type hadamard themselves, and can for powers of two alone."""
    made_by_reader = all(size & (size - 1) == 0 for size in sizes)
    return "hadamard" if options.made_as == "hadamard" and made_by_reader else _SAVED


def _offline_schemes(architecture: Architecture, options: RotateOptions) -> dict[str, Any]:
    """R1 and R2 as they are declared beside online ones; readers do not apply them again."""
    schemes = {}
    if "R1" in options.chosen:
        written = [*architecture.embeddings, *architecture.writers]
        places = [apply(written, "weight_output")]
        places.append(apply(architecture.readers, "weight_input", inverse=True))
        schemes["R1"] = scheme(options.made_as, options.block_size, places)
    if "R2" in options.chosen:
        values = [attention.v.module for attention in architecture.attentions]
        outputs = [name for attention in architecture.attentions for name in attention.outputs]
        places = [apply(values, "weight_output"), apply(outputs, "weight_input", inverse=True)]
        size = architecture.attentions[0].v.size
        schemes["R2"] = scheme(options.made_as, size, places)
    return schemes


def _words(rotations: Iterable[AnyRotation]) -> str:
    return ", ".join(dict.fromkeys(rotation.description for rotation in rotations))
