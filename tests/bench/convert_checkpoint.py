"""compressed-tensors' convert_checkpoint as a contender: `python convert_checkpoint.py SRC DST X`.

X is fp8 (blocks become floats) or awq (becomes pack-quantized). Runs in an environment of its
own, which has compressed-tensors 0.20 and not this project: `python -m tests.bench dequantize-FP8
--peer "dequantize-FP8:peer=PYTHON tests/bench/convert_checkpoint.py {made} {dst} fp8"`.
"""

import sys

from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import (
    FP8BlockDequantizer,
)

source, destination, what = sys.argv[1:]
convert_checkpoint(
    model_stub=source,
    save_directory=destination,
    converter=FP8BlockDequantizer(targets=[r"re:.*_proj$"])
    if what == "fp8"
    else AutoAWQConverter.from_pretrained(source),
    max_workers=2,
)
