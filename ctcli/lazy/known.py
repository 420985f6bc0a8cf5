"""Small tensors whose bytes are known beforehand, as arrays and in other dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctcli.lazy.tensors import Known, TensorSpec
from ctcli.ops.dtypes import DTYPES

if TYPE_CHECKING:
    from ctcli.lazy.nodes import Block

_FLOATS = {"F32": "f4", "F64": "f8"}


def array_dtype(spec: TensorSpec) -> str:
    """Numpy's name of the type of a block's elements: floats, or bits of their size."""
    return _FLOATS.get(spec.dtype, f"u{max(1, DTYPES[spec.dtype].nbytes)}")


def known_array(tensor: Known) -> Block:
    """The elements of a known tensor, as they would be read."""
    import numpy as np

    return np.frombuffer(tensor.content, array_dtype(tensor.spec)).reshape(tensor.spec.shape)


def widened(tensor: Known) -> Known:
    """The same values in float32."""
    import numpy as np

    from ctcli.ops.bits import to_floats

    values = to_floats(known_array(tensor), tensor.spec.dtype, np.float32)
    return Known(TensorSpec("F32", tensor.spec.shape), values.astype("<f4").tobytes())
