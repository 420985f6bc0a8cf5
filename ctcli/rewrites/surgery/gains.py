"""A norm's gain alone, on stored rows: W diag(gain), without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Direct, Matrix, NonFiniteError, Reduction
from ctcli.rewrites.surgery.edits import HINT, Arithmetic, Edit

if TYPE_CHECKING:
    from ctcli.ops.bits import Bits, Floats


def direct(
    matrix: Matrix, edit: Edit, arithmetic: Arithmetic, dtype: str, output: str
) -> Direct | None:
    """An edit that does no more than to apply a gain, if that, to what is stored.

    Args:
        matrix: what is edited.
        edit: what happens to it.
        arithmetic: how to compute.
        dtype: safetensors tag of the result.
        output: its name in the module.

    Returns:
        How to get the same bytes without torch; None: the edit needs it.
    """
    gain = edit.gain
    if matrix.compute or edit.columns or edit.rows or arithmetic.device != "cpu":
        return None
    if arithmetic.precision != "exact" or (gain and (gain.divides or gain.weight.compute)):
        return None
    return Direct(
        partial(
            _scale,
            matrix.source.spec.dtype,
            dtype,
            output,
            arithmetic.is_exact_in_float32(matrix, edit),
            gain.offset if gain else 0.0,
        ),
        (_vector(gain.weight),) if gain else (),
    )


@cache
def _vector(matrix: Matrix) -> Reduction:
    """All of a stored vector [1, n]: [n] float64."""
    part = partial(_as_float64, matrix.source.spec.dtype)
    return Reduction((matrix,), part, "sum", _as_is, takes_bits=True)


def _as_float64(dtype: str, bits: Bits, _: None) -> Floats:
    import numpy as np

    from ctcli.ops.bits import to_floats

    return to_floats(bits, dtype, np.float64).reshape(-1)


def _as_is(combined: Floats, _: None) -> Floats:
    return combined


def _scale(
    source: str,
    target: str,
    output: str,
    is_exact_in_float32: bool,
    offset: float,
    stored: Bits,
    values: tuple[Floats, ...],
) -> tuple[Mapping[str, Bits], Sequence[float]]:
    """See `Direct.compute`; there is nothing to measure.

    Raises:
        NonFiniteError: what was read is not finite, or the result is too large for the dtype.
    """
    from ctcli.ops.edits import edited

    gain = values[0] + offset if values else None
    bits, is_finite = edited(stored, source, target, gain=gain, in_float32=is_exact_in_float32)
    if not is_finite:
        raise NonFiniteError(HINT)
    return {output: bits}, ()
