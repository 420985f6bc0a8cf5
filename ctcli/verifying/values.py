"""Values that no writer means: scales of zero or NaN, codes out of range, set padding bits."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from ctcli.models.fused import fused_sets
from ctcli.verifying.findings import Finding
from ctcli.verifying.linear import QuantizedModule

NOT_FINITE = "values are NaN or infinite"
# Scales that the linears of a fused set share in a server.
_SHARED = ("weight_global_scale", "input_global_scale")


def shared_findings(modules: Mapping[str, QuantizedModule]) -> Iterator[Finding]:
    """Fused sets whose global scales are not equal: a server has one for all members."""
    for fused in fused_sets(modules):
        for suffix in _SHARED:
            found = {
                member: tensor.file.read(tensor.start, tensor.spec.nbytes)
                for member in fused.tensors
                if (tensor := modules[member].tensors.get(suffix))
            }
            if len({*found.values()}) > 1:
                values = ", ".join(
                    f"{member.rpartition('.')[2]} {_float32(content):g}"
                    for member, content in found.items()
                )
                message = f"its members have different {suffix}: {values}."
                yield Finding("value", fused.name, message)


def _float32(content: bytes) -> float:
    return float(struct.unpack("<f", content[:4])[0])
