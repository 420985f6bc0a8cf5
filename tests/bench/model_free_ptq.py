"""llm-compressor's model_free_ptq as a contender: `python model_free_ptq.py SRC DST SCHEME [fp8]`.

With fp8, SRC has blocks of FP8 as DeepSeek and Qwen spell them, which become floats before.
Runs in an environment of its own, which has llm-compressor and not this project.
"""

import sys

from compressed_tensors.entrypoints.convert import FP8BlockDequantizer
from llmcompressor import model_free_ptq

source, destination, scheme, *rest = sys.argv[1:]
model_free_ptq(
    model_stub=source,
    save_directory=destination,
    scheme=scheme,
    ignore=["lm_head", "re:.*embed_tokens$"],
    max_workers=2,
    device="cpu",
    converter=FP8BlockDequantizer(targets=[r"re:.*_proj$"]) if rest == ["fp8"] else None,
)
