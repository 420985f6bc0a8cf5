"""The heads of an attention block: which rows of which linear make them."""

from __future__ import annotations

from ctcli.models.architecture import AttentionRole, HeadRows, NormRole
from ctcli.models.facts import SourceFacts
from ctcli.models.family import Attention, Family

_CODEGEN_PARTS = 4  # of CodeGen's qkv_proj, made for as many devices


def heads_of(
    declared: Attention, family: Family, prefix: str, source: SourceFacts
) -> tuple[AttentionRole, tuple[NormRole, ...]]:
    """Attention, and the norms inside it that do not read the stream.

    Args:
        declared: how it is laid out.
        family: the declaration of the whole.
        prefix: of all names in its layer, with the dot.
        source: the checkpoint.
    """
    module = prefix + declared.module
    output = f"{module}.{declared.output}"
    if declared.layout == "latent":
        return _latent(declared, module, output, source)
    if declared.layout == "experts":
        return _of_experts(declared, module, source), ()
    size, heads, kv_heads = _sizes(declared, family, module, source)
    inputs = tuple(f"{module}.{name}" for name in declared.inputs)
    extras = tuple(f"{module}.{name}" for name in declared.extras)
    if lent := _lent(inputs, source):
        q = HeadRows(inputs[0], heads, 0, size, size)
        rows = (
            q if lent == inputs[0] else HeadRows(lent, source.size(lent, 0) // size, 0, size, size)
        )
        own = dict.fromkeys((inputs[0], lent))
        return AttentionRole(module, (*own, *extras), q, rows, rows, output), ()
    if declared.layout == "separate":
        value = source.optional(declared.value_size) if declared.value_size else size
        value = value or size
        q, k, v = (
            HeadRows(inputs[0], heads, 0, size * (2 if declared.gated else 1), size),
            HeadRows(inputs[1], kv_heads, 0, size, size),
            HeadRows(inputs[2], kv_heads, 0, value, value),
        )
    else:
        q, k, v = _fused(declared, inputs[0], size, heads, kv_heads)
    return AttentionRole(module, (*inputs, *extras), q, k, v, output, declared.normed), ()


def _lent(inputs: tuple[str, ...], source: SourceFacts) -> str | None:
    """The linear that stands for keys and values that a block has none of its own for."""
    if len(inputs) < 3:
        return None
    if source.text.get("num_kv_shared_layers") and not source.has(inputs[1]):
        return inputs[0]
    if source.text.get("attention_k_eq_v") and not source.has(inputs[2]):
        return inputs[1]
    return None


def _sizes(
    declared: Attention, family: Family, module: str, source: SourceFacts
) -> tuple[int, int, int]:
    """The size of a head, and how many there are of queries and of keys."""
    output = f"{module}.{declared.output}"
    if declared.size_of:
        shape = source.shapes.get(f"{module}.{declared.size_of}.weight", (1,))
        size = shape[0]
        values = source.size(f"{module}.{declared.inputs[2]}", 0)
        return size, source.size(output, 1) // size, values // size
    size = source.optional("head_dim") or family.head_dim or source.head_dim
    heads = source.optional("num_attention_heads") or source.size(output, 1) // size
    if declared.value_size:  # layers may have different numbers of key heads
        value = source.optional(declared.value_size) or size
        return size, heads, source.size(f"{module}.{declared.inputs[2]}", 0) // value
    if declared.layout in ("heads", "quarters"):
        return size, heads, heads
    last = f"{module}.{declared.inputs[-1]}"
    if declared.layout == "fused":
        counted = (source.size(last, 0) // size - heads) // 2
    else:
        counted = source.size(last, 0) // size
    given = source.optional("num_key_value_heads")
    is_given = given is not None and declared.layout != "fused"
    return size, heads, given if is_given and given else counted


def _fused(
    declared: Attention, module: str, size: int, heads: int, kv_heads: int
) -> tuple[HeadRows, HeadRows, HeadRows]:
    """Queries, keys and values in one linear."""
    if declared.layout == "fused":
        starts = (0, heads, heads + kv_heads)
        q, k, v = (
            HeadRows(module, count, start * size, size, size)
            for count, start in zip((heads, kv_heads, kv_heads), starts, strict=True)
        )
        return q, k, v
    if declared.layout == "quarters":
        group = heads // _CODEGEN_PARTS
        q, v, k = (
            HeadRows(module, heads, i * group * size, 3 * group * size, size, max(1, group))
            for i in range(3)
        )
        return q, k, v
    group = max(1, heads // max(1, kv_heads)) if declared.layout == "groups" else 1
    stride = (group + 2) * size
    return (
        HeadRows(module, heads, 0, stride, size, group),
        HeadRows(module, kv_heads, group * size, stride, size),
        HeadRows(module, kv_heads, (group + 1) * size, stride, size),
    )


def _of_experts(declared: Attention, module: str, source: SourceFacts) -> AttentionRole:
    """Queries and outputs of many experts; `*` in their names stands for an expert's number."""
    each, shared = (f"{module}.{name}" for name in declared.inputs)
    queries = [each.replace("*", "0")]
    while source.has(further := each.replace("*", str(len(queries)))):
        queries.append(further)
    output = f"{module}.{declared.output}"
    outputs = [output.replace("*", str(number)) for number in range(len(queries))]
    size, heads = source.number("kv_channels"), source.number("num_key_value_heads")
    extras = (f"{module}.{name}" for name in declared.extras)
    return AttentionRole(
        module,
        (*queries, shared, *extras),
        q=HeadRows(queries[0], heads, 0, size, size),
        k=HeadRows(shared, heads, 0, size, size),
        v=HeadRows(shared, heads, heads * size, size, size),
        o=outputs[0],
        others=tuple(outputs[1:]),
    )


def _latent(
    declared: Attention, module: str, output: str, source: SourceFacts
) -> tuple[AttentionRole, tuple[NormRole, ...]]:
    heads = source.number("num_attention_heads")
    nope, rope, value = (
        source.number(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    keys_and_values = f"{module}.kv_b_proj"
    norms = [NormRole(f"{module}.kv_a_layernorm", (keys_and_values,), on_stream=False)]
    inputs, queries = [f"{module}.q_proj"], f"{module}.q_proj"
    if source.text.get("q_lora_rank"):
        inputs, queries = [f"{module}.q_a_proj"], f"{module}.q_b_proj"
        norms.append(NormRole(f"{module}.q_a_layernorm", (queries,), on_stream=False))
    role = AttentionRole(
        module,
        (*inputs, f"{module}.kv_a_proj_with_mqa", *(f"{module}.{e}" for e in declared.extras)),
        q=HeadRows(queries, heads, 0, nope + rope, nope + rope),
        k=HeadRows(keys_and_values, heads, 0, nope + value, nope),
        v=HeadRows(keys_and_values, heads, nope, nope + value, value),
        o=output,
    )
    return role, tuple(norms)
