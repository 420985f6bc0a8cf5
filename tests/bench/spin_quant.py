"""llm-compressor's SpinQuantModifier as a contender: `python spin_quant.py SRC DST`.

R1 and R2 by Hadamard matrices, without data. Runs in an environment of its own, which has
llm-compressor and not this project.
"""

import sys

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.transform import SpinQuantModifier
from transformers import AutoModelForCausalLM

source, destination = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
oneshot(
    model=model,
    recipe=SpinQuantModifier(rotations=["R1", "R2"], transform_type="hadamard"),
    pipeline="datafree",
)
model.save_pretrained(destination)
