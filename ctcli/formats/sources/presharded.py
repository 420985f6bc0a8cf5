"""The option that tells in how many parts the rows of a weight were quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ctcli.options import OptionError, option


def presharded() -> tuple[str, ...]:
    """The option of commands that read quantized weights alone."""
    return option(
        (),
        "FP8 blocks: the rows of these modules (exact names, or re: and an expression) were "
        "quantized in C parts, as fused QKV projections are. Repeatable.",
        "found from the scales",
        metavar="PATTERN=C",
        is_common=True,
    )


def parts_by_pattern(given: Sequence[str]) -> Mapping[str, int]:
    """Into how many parts the rows of modules are cut, by pattern.

    Args:
        given: the option's values.

    Raises:
        OptionError: one does not say how many.
    """
    found = {}
    for each in given:
        pattern, _, count = each.rpartition("=")
        if not pattern or not count.isdecimal() or int(count) < 1:
            raise OptionError(f"--presharded {each!r}: give PATTERN=C, such as 're:.*qkv_proj=8'.")
        found[pattern] = int(count)
    return found
