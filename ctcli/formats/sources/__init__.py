"""How tools store quantized weights, each in a file of its own; the table of them.

A module's weights are read by the first that finds them among its tensors.
"""

from __future__ import annotations

from ctcli.formats.sources.awq import AWQ
from ctcli.formats.sources.bitsandbytes import BITSANDBYTES
from ctcli.formats.sources.coded import SourceFormat
from ctcli.formats.sources.compressed import COMPRESSED
from ctcli.formats.sources.experts import FUSED_EXPERTS
from ctcli.formats.sources.float8 import FLOAT8
from ctcli.formats.sources.gptoss import GPT_OSS
from ctcli.formats.sources.gptq import GPTQ
from ctcli.formats.sources.modelopt import MODELOPT
from ctcli.formats.sources.mxfp4 import MXFP4
from ctcli.formats.sources.nvfp4 import RAW_NVFP4
from ctcli.formats.sources.quark import QUARK

SOURCES: tuple[SourceFormat, ...] = (
    COMPRESSED,
    FLOAT8,
    FUSED_EXPERTS,
    QUARK,
    MXFP4,
    MODELOPT,
    RAW_NVFP4,
    GPT_OSS,
    AWQ,
    GPTQ,
    BITSANDBYTES,
)
