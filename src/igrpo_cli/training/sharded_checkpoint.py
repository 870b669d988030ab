"""Sharded tensors on disk: every rank writes its own part, any number of ranks reads them back.

The format is safetensors with the place of each part in its header, as torch.distributed.checkpoint writes for Hugging
Face; nothing of it is pickled. A file of whole tensors is read by the same means.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from igrpo_cli.errors import ConflictError, DamagedFileError


def save_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors, sharded or the same on every rank, into `directory`; every rank must call it."""
    with _quietly():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def load_sharded(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, sharded in whatever way, with what `directory` holds under their names.

    It may hold other kinds of tensors too; a kind is the part of a name before its first dot. Raises ConflictError
    where it holds other names of the same kinds, or other shapes, DamagedFileError where it cannot be read.
    """
    reader = HuggingFaceStorageReader(str(directory))
    try:
        with _quietly():
            stored = reader.read_metadata().state_dict_metadata
            kinds = {name.partition(".")[0] for name in tensors}
            same_kind = {name for name in stored if name.partition(".")[0] in kinds}
            for name in sorted(same_kind ^ tensors.keys()):
                where = "the files" if name in stored else "the model"
                raise ConflictError(f"{directory} is of another model: only {where} has {name}")
            for name, tensor in tensors.items():
                kept = stored[name]
                if not isinstance(kept, TensorStorageMetadata) or kept.size != tensor.shape:
                    found, wanted = list(getattr(kept, "size", ())), list(tensor.shape)
                    raise ConflictError(f"{directory} is of another model: {name} has shape {found}, not {wanted}")
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    except (OSError, ValueError, CheckpointException) as error:
        raise DamagedFileError(f"{directory} cannot be read: {error}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's warnings about a checkpoint that one process reads alone, which is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
