"""No secret in what people and logs see."""

from __future__ import annotations

import pytest

from ctcli.redaction import redact

TOKEN = "hf_" + "aB3" * 11 + "x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}.", "token hf_***."),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("GET https://cdn.example/a/b?X-Amz-Signature=1&b=2 ended", None),
        ("https://user:word@example.org/x", "https://***@example.org/x"),
        ("model.layers.0.hf_proj: https://example.org/plain", None),
    ],
)
def test_secrets_are_blacked_out_and_the_rest_stays(text: str, shown: str | None) -> None:
    expected = shown or text.replace("?X-Amz-Signature=1&b=2", "?***")
    assert redact(text) == expected


def test_tokens_in_use_need_no_known_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-own-kind-of-token")
    assert redact("it was an-own-kind-of-token") == "it was ***"
    assert redact("it was from-a-file", "from-a-file") == "it was ***"
    monkeypatch.setenv("HF_TOKEN", "a")
    assert redact("a word") == "a word"
