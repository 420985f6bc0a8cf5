"""Whether vLLM can serve a checkpoint, as far as it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctcli.formats.architectures import strangers
from ctcli.formats.declared import QUANT_METHOD, read_declaration
from ctcli.formats.loaders import Contents, problems
from ctcli.lazy.tensors import TensorSpec


def is_refused(config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> bool:
    """Whether vLLM lacks the architecture, or a kernel for what is quantized.

    Args:
        config: config.json.
        specs: the tensors as they are stored.
    """
    if any(strangers(config, ("vllm",))):
        return True
    declared = read_declaration(config)
    if declared is None or declared.method != QUANT_METHOD:
        return False
    return bool(problems("vllm", Contents.stored(declared, specs)))
