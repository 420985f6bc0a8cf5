"""compressed-tensors' convert_checkpoint as a contender: `python convert_checkpoint.py SRC DST X`.

X is fp8 (blocks become floats), awq (becomes pack-quantized) or nvfp4 (ModelOpt's becomes
nvfp4-pack-quantized). Runs in an environment of its own, which has compressed-tensors 0.20 and not
this project.
"""

import sys

from compressed_tensors.entrypoints.convert import convert_checkpoint
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import (
    FP8BlockDequantizer,
)
from compressed_tensors.entrypoints.convert.converters.modelopt_nvfp4 import (
    ModelOptNvfp4Converter,
)

source, destination, what = sys.argv[1:]
linears = [r"re:.*_proj$"]
if what == "fp8":
    converter = FP8BlockDequantizer(targets=linears)
elif what == "awq":
    converter = AutoAWQConverter.from_pretrained(source)
else:
    converter = ModelOptNvfp4Converter(targets=linears)
convert_checkpoint(
    model_stub=source, save_directory=destination, converter=converter, max_workers=2
)
