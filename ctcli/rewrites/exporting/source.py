"""A checkpoint as the Llama that it holds, whatever family its names belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ctcli.checkpoint.value import Checkpoint
from ctcli.errors import CtcliError
from ctcli.formats.sources.reading import as_floats
from ctcli.lazy.nodes import LazyTensor
from ctcli.lazy.tensors import Stored, content_of
from ctcli.models.llama import HUGGING_FACE, Naming, naming_of
from ctcli.models.llama_config import LlamaConfig, from_config_json, from_params_json
from ctcli.storage.strict_json import parse_json

_COMPARED_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Llama:
    """A Llama's tensors, by the names that its family gives them, and its description."""

    tensors: Mapping[str, LazyTensor]
    naming: Naming
    config: LlamaConfig

    def rows_of(self, name: str, layer: int | None = None) -> int:
        """Rows of a tensor, by llama2.c's name; 0 where it is missing."""
        tensor = self.tensors.get(self.naming.name(name, layer))
        return tensor.spec.shape[0] if tensor and tensor.spec.shape else 0

    @property
    def shares_classifier(self) -> bool:
        """Whether its classifier is the embedding: declared, left out, or equal in all bytes."""
        classifier = self.tensors.get(self.naming.name("classifier", None))
        embedding = self.tensors[self.naming.name("token_embedding", None)]
        return self.config.is_tied or classifier is None or _are_equal(embedding, classifier)


def read_llama(checkpoint: Checkpoint) -> Llama:
    """Recognize a Llama.

    Raises:
        CtcliError: there is none, its weights cannot be read, or its description is missing or
            malformed.
    """
    name = checkpoint.origin.name
    checkpoint = as_floats(checkpoint)
    tensors = dict(checkpoint.tensors())
    naming = naming_of(tensors)
    if naming is None:
        raise CtcliError(
            f"{name}: it has no embedding by a name that Llamas give it.",
            "Only Llamas in Hugging Face's or Meta's layout can be exported.",
        )
    if naming is HUGGING_FACE:
        if not checkpoint.config:
            raise CtcliError(
                f"{name}: it has no config.json, which describes the model.",
                "Put it beside the weights.",
            )
        config = from_config_json(checkpoint.config)
    else:
        config = from_params_json(_params_of(checkpoint))
    if config.invalid:
        raise CtcliError(
            config.invalid,
            f"Correct {naming.config}, which describes the model.",
        )
    if config.sizes["n_layers"] > len(tensors):
        raise CtcliError(
            f"{naming.config}: it has {config.sizes['n_layers']} layers, and there are only "
            f"{len(tensors)} tensors.",
            "Complete the checkpoint.",
        )
    return Llama(tensors, naming, config)


def _params_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    file = checkpoint.files.get("params.json")
    problem = "it is missing, and the tensors have Meta's names"
    if file is not None:
        try:
            content = parse_json(file if isinstance(file, bytes) else content_of(file))
        except ValueError as error:
            problem = f"not JSON: {error}"
        else:
            if isinstance(content, dict):
                return content
            problem = "no JSON object"
    raise CtcliError(f"params.json: {problem}.", "Add the model's params.json.")


def _are_equal(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two stored tensors hold the same bytes; mostly the first ones tell."""
    if a.spec != b.spec or not (isinstance(a, Stored) and isinstance(b, Stored)):
        return False
    for start in range(0, a.spec.nbytes, _COMPARED_BYTES):
        count = min(_COMPARED_BYTES, a.spec.nbytes - start)
        if a.file.read(a.start + start, count) != b.file.read(b.start + start, count):
            return False
    return True
