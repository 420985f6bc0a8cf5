"""Which files beside the weights go to a hub: the kinds that a model needs, and what is asked for.

A folder of a checkpoint may hold anything, and what is published cannot be taken back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError

# Endings of configs, tokenizers, templates, code, and what a model card links to.
_ENDINGS = {
    *(".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".spm", ".py"),
    *(".md", ".rst", ".yaml", ".yml", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"),
}
_STEMS = {"license", "licence", "notice", "use_policy", "copying", "authors", "readme"}
# Names, of files or of folders above them, that are kept for secrets.
_SECRET = (
    *(".env*", "*.env", ".ssh", ".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".docker"),
    *(".netrc", "_netrc", ".pgpass", ".pypirc", ".npmrc", ".git-credentials", ".huggingface"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "authorized_keys", "known_hosts"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ovpn", "*.token"),
    *("*secret*", "*passw*", "*credential*", "*private*key*", "*api_key*", "*api-key*", "*apikey*"),
    *("token", "token.*", "tokens", "tokens.txt", "*stored_token*", "hf_token", "hf_token.*"),
    *("*access_token*", "*auth_token*", "*bearer*", "service*account*", "*htpasswd", "shadow"),
)


def publishable(checkpoint: Checkpoint, include: Sequence[str]) -> Checkpoint:
    """The checkpoint without the files that are not to be published, each named in a warning.

    Args:
        checkpoint: what is to be published.
        include: patterns (`*` stands for anything) of further files to take along. A file whose
            name says that it holds a secret is taken only if it is given by its whole path.

    Raises:
        CtcliError: a pattern that adds no file; lists them all.
    """
    given = {name for name, file in checkpoint.files.items() if isinstance(file, bytes)}
    secret = {name for name in checkpoint.files.keys() - given if is_secret(name)}
    strange = {n for n in checkpoint.files.keys() - given - secret if not is_needed(n)}
    taken = {name for name in strange if any(fnmatchcase(name, each) for each in include)}
    taken |= secret.intersection(include)
    _check(include, taken, secret | strange)
    left_out = (secret | strange) - taken
    warnings = [
        f"not published, since {reason}: {', '.join(names)}."
        for reason, names in (
            ("no model needs such files (--include takes them along)", sorted(strange - taken)),
            ("by their names they hold secrets", sorted(secret - taken)),
        )
        if names
    ]
    files = {name: file for name, file in checkpoint.files.items() if name not in left_out}
    return replace(checkpoint, files=files, warnings=(*checkpoint.warnings, *warnings))


def is_secret(name: str) -> bool:
    """Whether a file's name, or that of a folder above it, is one that is kept for secrets."""
    return any(
        fnmatchcase(part.lower(), pattern)
        for part in PurePosixPath(name).parts
        for pattern in _SECRET
    )


def is_needed(name: str) -> bool:
    """Whether it is a kind of file that a model needs, or that describes one; none is hidden."""
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return False
    stem = path.name.lower().partition(".")[0]
    return path.suffix.lower() in _ENDINGS or any(stem.startswith(each) for each in _STEMS)


def _check(include: Iterable[str], taken: Iterable[str], left_out: Iterable[str]) -> None:
    problems = []
    for pattern in include:
        if not any(fnmatchcase(name, pattern) for name in taken):
            near = difflib.get_close_matches(pattern, left_out, n=3, cutoff=0.4)
            hint = f"; near names: {', '.join(near)}" if near else ""
            problems.append(f"--include {pattern!r} matches no file that would be left out{hint}.")
    if problems:
        raise CtcliError(
            problems, "Give a file's path inside SRC, or a pattern with *; a secret's whole path."
        )
