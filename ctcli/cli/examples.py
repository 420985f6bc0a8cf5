"""Examples of each command, which its help shows and the tests run."""

from __future__ import annotations

from collections.abc import Mapping

FIRST_STEPS = (
    ("ctcli inspect org/name", "what it holds and could become; reads headers"),
    ("ctcli quantize org/name DST --scheme W4A16", "4 bits, for vLLM and transformers"),
    ("ctcli verify DST --against org/name", "every weight's error, measured"),
)

# Commands with what they do there.
EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "reindex": (
        ("ctcli reindex SRC DST --dry-run", "which sets would move, and where"),
        ("ctcli reindex SRC DST --max-shard-size 5GB", "all shards anew, layer 2 before layer 10"),
    ),
    "fuse-norms": (("ctcli fuse-norms SRC DST --dtype float32", "for a chain without rounding"),),
    "rotate": (
        ("ctcli rotate SRC DST", "R1 and R2; the result is an ordinary checkpoint"),
        ("ctcli rotate SRC DST --rotation-file R.bin", "learned rotations, as SpinQuant has them"),
    ),
    "equalize": (("ctcli equalize SRC DST", "before 4 bits, for models with outliers"),),
    "sparsify": (("ctcli sparsify SRC DST --pattern 2:4", "2 of every 4 neighbours stay"),),
    "quantize": (
        ("ctcli quantize SRC DST --scheme W4A16 --dry-run", "reads headers only"),
        ("ctcli quantize SRC DST --scheme FP8_DYNAMIC", "no calibration"),
        ("ctcli quantize SRC DST --scheme 're:.*mlp.*=W4A16' --scheme FP8_DYNAMIC", "mixed"),
    ),
    "dequantize": (("ctcli dequantize QUANTIZED DST", "floats, of the dtype of config.json"),),
    "convert": (
        ("ctcli convert QUANTIZED DST", "the same numbers, for vLLM and transformers"),
        ("ctcli convert QUANTIZED DST --to fp8", "FP8 blocks as DeepSeek and Qwen spell them"),
    ),
    "export-bin": (
        ("ctcli export-bin SRC model.bin", "Q8_0, for runq"),
        ("ctcli export-bin SRC model.bin --version 0 --tokenizer", "float32 for run, tokenizer"),
    ),
    "run": (
        ("ctcli run recipe.toml SRC DST", "all steps in one read and one write"),
        ("ctcli run DST/ctcli_recipe.toml SRC AGAIN", "the same bytes again"),
    ),
    "finish": (("ctcli finish DST", "once every part of --part I/N is made"),),
    "inspect": (
        ("ctcli inspect org/name", "of a hub: headers only"),
        ("ctcli inspect SRC --tensors '*.mlp.*'", "tensors whose names match"),
    ),
    "verify": (
        ("ctcli verify DST --against SRC", "and the error of every weight"),
        ("ctcli verify DST --against SRC --html DST.html", "as a page to look at"),
    ),
    "help": (
        ("ctcli help quantize", "every option in full"),
        ("ctcli help schemes", "a page of the guide"),
    ),
}
