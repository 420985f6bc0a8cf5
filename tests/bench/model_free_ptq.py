"""llm-compressor's model_free_ptq as a contender: `python model_free_ptq.py SRC DST SCHEME`.

Runs in an environment of its own, which has llm-compressor and not this project.
"""

import sys

from llmcompressor import model_free_ptq

source, destination, scheme = sys.argv[1:]
model_free_ptq(
    model_stub=source,
    save_directory=destination,
    scheme=scheme,
    ignore=["lm_head", "re:.*embed_tokens$"],
    max_workers=2,
    device="cpu",
)
