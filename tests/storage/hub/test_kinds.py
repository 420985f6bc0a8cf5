"""What is published is what a model needs: no links out of SRC, no secrets, no strange files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctcli.storage.hub.kinds import is_needed, is_secret
from tests.conftest import Ctcli
from tests.helpers.hub import Hub
from tests.storage.hub.test_stream import source  # noqa: F401 (a fixture)

TOKEN, MADE = "hf_" + "Qd3" * 11 + "T", "org/made"
NEEDED = (
    "config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt "
    "special_tokens_map.json added_tokens.json tokenizer.model spiece.model qwen.tiktoken "
    "chat_template.jinja modeling_x.py nested/template.txt LICENSE LICENSE-LLAMA3 NOTICE "
    "USE_POLICY.md README.md preprocessor_config.json recipe.yaml figures/score.png "
    "hf_tokenizer.json params.json authors.md tokenization_author.py"
)
SECRET = (
    ".env .env.local prod.env .ssh/config .ssh/id_ed25519 keys/id_rsa id_rsa.pub server.pem "
    "tls.key .netrc .aws/config hf_token token token.json credentials.json my-secrets.json "
    "passwords.txt openai_api_key.txt gcloud/service-account.json .git-credentials .npmrc "
    "SECRET.TXT"
)
STRANGE = (
    "notes.docx train.log core a.out data.parquet optimizer.pkl .hidden.json .cachedir/x.json "
    ".bash_history events.out.tfevents x.tar.gz backup.sql shell.sh"
)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.token = TOKEN
        yield running


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return hub.env(tmp_path / "home", TOKEN)


@pytest.fixture
def src(source: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A checkpoint in whose folder other things lie, and links that lead out of it."""
    folder = tmp_path / "src"
    shutil.copytree(source, folder)
    for name in (".env", ".ssh/id_rsa", "my.pem", "notes.docx", "data/x.parquet"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine alone")
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "passwd.txt").write_text("root:x:0:0")
    (outside / "deep" / "diary.md").write_text("dear")
    (folder / "vocab.txt").symlink_to(outside / "passwd.txt")
    (folder / "more").symlink_to(outside)
    (folder / "root").symlink_to("/")
    (folder / "tokenizer").symlink_to(folder.name + "/../../outside/deep")
    return folder


@pytest.mark.parametrize("name", NEEDED.split())
def test_what_a_model_needs_is_published(name: str) -> None:
    assert is_needed(name)
    assert not is_secret(name)


@pytest.mark.parametrize("name", SECRET.split())
def test_a_name_that_speaks_of_secrets_is_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", STRANGE.split())
def test_what_no_model_needs_is_not_published(name: str) -> None:
    assert not is_needed(name)


@pytest.mark.parametrize("target", ["local", "hub only"])
def test_neither_links_out_of_src_nor_secrets_nor_strange_files_are_published(
    hub: Hub,
    ctcli: Ctcli,
    env: dict[str, str],
    src: Path,
    tmp_path: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    where = (tmp_path / "out", "--push", MADE) if target == "local" else (f"hf://{MADE}",)
    done = ctcli("reindex", src, *where, env=env)
    assert not done.returncode, done.stderr
    expected = {path.name for path in src.iterdir() if path.suffix in (".json", ".safetensors")}
    contents = hub.contents(MADE)
    assert expected <= contents.keys()
    assert contents.keys() - expected <= {
        *("README.md", ".gitattributes", "ctcli_recipe.toml", "chat_template.jinja"),
        *(path.name for path in src.iterdir() if path.is_file() and not path.is_symlink()),
    } - {".env", "my.pem", "notes.docx"}
    for secret in (b"mine alone", b"root:", b"dear"):
        assert not any(secret in content for content in contents.values())
    links, strange, secrets = done.stderr.splitlines()[:3]
    assert "links that lead out of SRC: more, root, tokenizer, vocab.txt." in links
    assert strange.endswith("takes them along): data/x.parquet, notes.docx.")
    assert secrets.endswith("they hold secrets: .env, .ssh/id_rsa, my.pem.")
    if target == "local":
        assert not (tmp_path / "out" / "vocab.txt").exists()
        assert not (tmp_path / "out" / ".env").exists()


def test_include_takes_strange_files_by_pattern_and_secrets_by_their_path_only(
    hub: Hub, ctcli: Ctcli, env: dict[str, str], src: Path, tmp_path: Path
) -> None:
    given = ("--include", "*", "--include", "my.pem")
    done = ctcli("reindex", src, tmp_path / "out", "--push", MADE, *given, env=env)
    assert not done.returncode, done.stderr
    contents = hub.contents(MADE)
    assert {"notes.docx", "data/x.parquet", "my.pem"} <= contents.keys()
    assert not {".env", ".ssh/id_rsa", "vocab.txt", "more/passwd.txt"} & contents.keys()
    assert "they hold secrets: .env, .ssh/id_rsa." in done.stderr


@pytest.mark.parametrize("pattern", ["notes.doc", ".e*", "config.json", "*.pem"])
def test_an_include_that_adds_nothing_is_refused(
    hub: Hub, ctcli: Ctcli, env: dict[str, str], src: Path, tmp_path: Path, pattern: str
) -> None:
    done = ctcli("reindex", src, tmp_path / "out", "--push", MADE, "--include", pattern, env=env)
    assert done.returncode == 1
    assert f"--include {pattern!r} matches no file" in done.stderr
    assert MADE not in hub.repos


def test_include_goes_with_a_hub(ctcli: Ctcli, src: Path, tmp_path: Path) -> None:
    done = ctcli("reindex", src, tmp_path / "out", "--include", "*")
    assert done.returncode == 2
    assert "--include goes with --push" in " ".join(done.stderr.split())


def test_a_dry_run_says_what_would_not_be_published(
    ctcli: Ctcli, env: dict[str, str], src: Path, tmp_path: Path
) -> None:
    done = ctcli("reindex", src, tmp_path / "out", "--push", MADE, "--dry-run", "--json", env=env)
    assert not done.returncode, done.stderr
    said = " ".join(json.loads(done.stdout)["warnings"])
    assert all(name in said for name in (".env", "notes.docx", "vocab.txt"))
