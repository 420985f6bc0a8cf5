"""How tools store quantized weights, each in a file of its own; the table of them.

A module's weights are read by the first that finds them among its tensors.
"""

from __future__ import annotations

from ctcli.formats.sources.awq import AWQ
from ctcli.formats.sources.bitsandbytes import BITSANDBYTES
from ctcli.formats.sources.coded import SourceFormat
from ctcli.formats.sources.compressed import COMPRESSED
from ctcli.formats.sources.float8 import FLOAT8
from ctcli.formats.sources.gptq import GPTQ

SOURCES: tuple[SourceFormat, ...] = (COMPRESSED, FLOAT8, AWQ, GPTQ, BITSANDBYTES)
