"""Presets in words, and what those mean who know a scheme by another tool's name."""

from __future__ import annotations

import difflib

from ctcli.schemes.presets import PRESETS

# Presets that are alike, in the order of the help, and what they are.
FAMILIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("FP8_DYNAMIC",), "FP8 by channel, FP8 activations; half the size, no calibration"),
    (("FP8_BLOCK",), "FP8 in 128x128 blocks, FP8 activations, as DeepSeek publishes"),
    (("W8A8", "INT8"), "INT8 by channel, INT8 activations"),
    (("W4A16", "W4A16_ASYM"), "INT4 in groups of 128, 16-bit activations; a quarter of the size"),
    (("W2A16", "W3A16", "W5A16", "W6A16", "W7A16", "W8A16"), "INT2 to INT8 likewise"),
    (
        ("W4A8", "W2A8", "W3A8", "W5A8", "W6A8", "W7A8", "W4AFP8", "W2A4", "W3A4", "W4A4"),
        "integers in groups of 128, INT8, FP8 or INT4 activations",
    ),
    (("NVFP4A16",), "FP4 in groups of 16 under a global scale, 16-bit activations"),
    (("MXFP4A16", "MXFP4", "MXFP4XFP8"), "FP4 in groups of 32, 16-bit, FP4 or FP8 activations"),
    (
        ("MXFP8A16", "MXFP8", "MXFP6A16", "MXFP6A8"),
        "FP8 or FP6 in groups of 32; FP6 only with --ct-version 0.20",
    ),
    (("FP8", "NVFP4"), "FP8 by tensor, FP4 in groups of 16: static, need --input-scales"),
)
# What other tools call it, in lower case without separators: what to give here.
_ELSEWHERE = {
    **dict.fromkeys(
        ("int4", "w4", "4bit", "gptq", "awq", "q4", "q40", "q4km", "q4ks", "q41", "int4wo"),
        "W4A16 is INT4 in groups of 128; W4A16_ASYM has zero points, as AWQ has.",
    ),
    **dict.fromkeys(
        ("nf4", "fp4", "bnb", "bitsandbytes", "float4"),
        "compressed-tensors has no NF4; NVFP4A16 and MXFP4A16 have 4-bit floats, W4A16 integers.",
    ),
    **dict.fromkeys(
        ("float8", "fp8e4m3", "e4m3", "f8", "fp8wo"),
        "FP8_DYNAMIC is FP8 without calibration; FP8_BLOCK has 128x128 blocks.",
    ),
    **dict.fromkeys(("8bit", "q8", "q80", "w8", "int8wo"), "W8A16 is INT8 weights, W8A8 all INT8."),
    **dict.fromkeys(("q5km", "q50", "q5", "5bit"), "W5A16 is INT5 in groups of 128."),
    **dict.fromkeys(("q6k", "q6", "6bit"), "W6A16 is INT6 in groups of 128."),
    **dict.fromkeys(("q3km", "q3", "3bit", "int3"), "W3A16 is INT3 in groups of 128."),
    **dict.fromkeys(("q2k", "q2", "2bit", "int2"), "W2A16 is INT2 in groups of 128."),
    **dict.fromkeys(("smoothquant", "w8a8int8"), "W8A8 is INT8 weights and activations."),
}
# What a preset with static activations, which need calibration, has in its place.
WITHOUT_CALIBRATION = {"FP8": "FP8_DYNAMIC", "NVFP4": "NVFP4A16"}


def advice_on(name: str) -> str:
    """What to give in place of a preset's name that there is not; empty: nothing is like it."""
    bare = "".join(char for char in name.lower() if char.isalnum())
    spelled = [each for each in PRESETS if each.replace("_", "").lower() == bare]
    if spelled:
        return f"Give {spelled[0]}."
    if bare in _ELSEWHERE:
        return _ELSEWHERE[bare]
    near = difflib.get_close_matches(name.upper(), PRESETS, n=3)
    return f"Near names: {', '.join(near)}." if near else ""
