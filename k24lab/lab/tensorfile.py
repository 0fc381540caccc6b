"""Files of tensors and plain values: safetensors with a checksum. Nothing in them is executed when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from k24lab.errors import RunError

TENSOR, PAIRS, TUPLE = "$tensor", "$pairs", "$tuple"  # what JSON has no words for


def write(file: BinaryIO, about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, and `about` them, into a file that is open at its start."""
    plain = _separate(tensors)
    # Not `save_file`: it writes another file and renames it, so that nothing could be known to be on disk.
    file.write(save(plain, dict(about) | {"checksum": checksum(about, plain)}))


def read(path: Path, wanted: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What `write` has written, if its `format` is the one that is wanted.

    Raises:
        RunError: no such file, truncated, damaged, of another kind or version.
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            # Copies: a tensor that is the file itself, mapped, would be lost, and this process too, if that was cut.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read, it is truncated or of another kind: {error}") from error
    if about.get("format") != wanted:
        raise RunError(f"{path} has format {about.get('format')!r}, expected {wanted!r}")
    if about.pop("checksum", None) != checksum(about, tensors):
        raise RunError(f"{path} is damaged: its checksum is not that of its numbers")
    return about, tensors


def checksum(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of everything in a file but the checksum itself."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def flatten(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A nest of dicts, lists, tuples, tensors and plain values as JSON can hold it.

    Its tensors go into `tensors`, each under its way through the nest: `learner/agent/fc1.weight`.
    """

    def inside(value: Any, key: object) -> Any:
        return flatten(value, tensors, f"{name}/{key}" if name else str(key))

    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {TENSOR: name}
    if isinstance(tree, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in tree):
            return {key: inside(value, key) for key, value in tree.items()}
        return {PAIRS: [[key, inside(value, key)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [inside(item, k) for k, item in enumerate(tree)]
        return items if isinstance(tree, list) else {TUPLE: items}
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    raise TypeError(f"{name} is of type {type(tree).__name__}, which no file of tensors holds")


def restore(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that `flatten` was given."""
    if isinstance(tree, list):
        return [restore(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR in tree:
        return tensors[tree[TENSOR]]
    if TUPLE in tree:
        return tuple(restore(tree[TUPLE], tensors))
    if PAIRS in tree:
        return {key: restore(value, tensors) for key, value in tree[PAIRS]}
    return {key: restore(value, tensors) for key, value in tree.items()}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each with memory of its own, as the format wants them."""
    plain: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return plain
