"""Write a 4-bit checkpoint as AWQ or GPTQ tools do: random codes of a model's shapes.

`python -m tests.bench.make_packed awq|gptq FOLDER LAYERS`; a layer takes 110 MB, in a shard of its
own. Codes are random, so that nothing about them is easier than in a real one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

_HIDDEN, _INTERMEDIATE, _GROUP = 4096, 14336, 128
_LINEARS = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), (_HIDDEN, _HIDDEN)),
    **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (_HIDDEN // 4, _HIDDEN)),
    **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (_INTERMEDIATE, _HIDDEN)),
    "mlp.down_proj": (_HIDDEN, _INTERMEDIATE),
}
_SAID = {
    "awq": {"quant_method": "awq", "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "desc_act": False, "sym": True, "checkpoint_format": "gptq"},
}


def main() -> None:
    method, folder, layers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for layer in range(layers):
        tensors: dict[str, torch.Tensor] = {}
        for leaf, (rows, columns) in _LINEARS.items():
            prefix = f"model.layers.{layer}.{leaf}."
            packed = (columns, rows // 8) if method == "awq" else (columns // 8, rows)
            groups = columns // _GROUP
            zeros = _words(generator, groups, rows // 8)
            if method == "gptq":  # symmetric: 8, less one
                zeros = torch.full_like(zeros, 0x77777777)
                tensors[f"{prefix}g_idx"] = torch.arange(columns, dtype=torch.int32) // _GROUP
            tensors[f"{prefix}qweight"] = _words(generator, *packed)
            tensors[f"{prefix}qzeros"] = zeros
            scales = torch.rand(groups, rows, generator=generator) * 0.01 + 0.001
            tensors[f"{prefix}scales"] = scales.half()
        shard = f"model-{layer + 1:05d}-of-{layers:05d}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "torch_dtype": "float16",
        "quantization_config": {"bits": 4, "group_size": _GROUP, **_SAID[method]},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _words(generator: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    low, high = -(2**31), 2**31
    return torch.randint(low, high, (rows, columns), generator=generator).to(torch.int32)


if __name__ == "__main__":
    main()
