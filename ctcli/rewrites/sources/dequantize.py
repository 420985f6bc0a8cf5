"""`ctcli dequantize`: quantized checkpoints as dense ones."""

from __future__ import annotations

from dataclasses import replace

from ctcli.checkpoint.sharding import cut_to_size
from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import dense, read_quantized
from ctcli.rewrites.sources.options import DequantizeOptions
from ctcli.rewrites.sources.report import SourceReport, methods


def dequantize(
    checkpoint: Checkpoint, options: DequantizeOptions
) -> tuple[Checkpoint, SourceReport]:
    """Replace quantized weights by floats.

    Raises:
        CtcliError: there are none, or some cannot be read.
    """
    reading = read_quantized(checkpoint, options.tag, options.parts)
    if reading is None or not reading.coded:
        raise CtcliError(
            f"{checkpoint.origin.name}: none of its weights is quantized.",
            "Copy it, or lay it out anew with ctcli reindex.",
        )
    if options.keep_kv_scales:
        reading = replace(reading, cache={})
    result = dense(checkpoint, reading)
    result = replace(result, steps=(*result.steps, {"use": "dequantize", **options.recipe}))
    if options.max_shard_size:
        result = cut_to_size(result, options.max_shard_size)
    exact = reading.is_exact and {c.weight.spec.dtype for c in reading.coded.values()} != {"F16"}
    report = SourceReport(
        "dequantized", methods(reading.coded), exact, checkpoint.nbytes, result.nbytes
    )
    return result, report
