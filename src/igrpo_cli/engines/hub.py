"""Model directories: download from the Hub, checks, and loading. Weights are safetensors, never pickled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igrpo_cli.engines.architectures import model_class, read_config, supported_config, unify
from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError, UsageError

_MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_OTHER_FORMATS = ("original/*", "onnx/*", "consolidated*")
_JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
_DOWNLOAD_AGAIN = "download or copy the model again"
_MAX_HEADER = 10**8
"""Maximum bytes of the header of a safetensors file, as in the format."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model directory on the local disk."""

    directory: Path
    revision_commit: str | None
    """Commit of the Hub repository; None for a local directory."""


def fetch_model(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> FetchedModel:
    """Return the model directory of `model`, a local directory or a Hub id. Downloads the latter if necessary.

    With `trust_remote_code` the Python files of the repository are downloaded too. Raises MissingInputError if the
    model does not exist or cannot be reached, and IgrpoError if its weights are in a format that can run code.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise UsageError(f"{model} is a local directory: it has no revision {revision!r}", hint="remove it")
        check_model_directory(directory)
        return FetchedModel(directory, None)
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise MissingInputError(f"no directory {model}", hint="give a model directory, or a Hub id such as org/name")
    directory = _download(model, revision, trust_remote_code)
    check_model_directory(directory)
    return FetchedModel(directory, directory.name)


def _download(model: str, revision: str | None, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [*_MODEL_FILES, "*.py"] if trust_remote_code else list(_MODEL_FILES)
    try:
        snapshot = snapshot_download(
            model, revision=revision, allow_patterns=patterns, ignore_patterns=list(_OTHER_FORMATS)
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        of_revision = f" at revision {revision}" if revision else ""
        raise MissingInputError(
            f"model {model}{of_revision} is neither a directory nor available from the Hub: {_first_line(error)}",
            hint=f"check the name; with Hub access run `hf download {model}` once, then HF_HUB_OFFLINE=1 is enough; "
            "or give a local model directory",
        ) from error
    return Path(snapshot)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_model_directory(directory: Path) -> None:
    """Check that `directory` has a config and complete safetensors weights, without loading them.

    Raises MissingInputError for a missing file, and DamagedFileError for the first file that is not a JSON object or
    not readable as safetensors.
    """
    if not (directory / "config.json").is_file():
        raise MissingInputError(
            f"{directory} is not a model directory: it has no config.json",
            hint="give the directory that `save_pretrained` or `hf download` wrote",
        )
    for name in _JSON_FILES:
        if (directory / name).is_file():
            _read_object(directory / name)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = _weight_files(index)
        if missing := sorted(name for name in files if not (directory / name).is_file()):
            raise MissingInputError(
                f"{directory} lacks {len(missing)} of {len(files)} weight files, {missing[0]} first",
                hint=_DOWNLOAD_AGAIN,
            )
    elif not any(directory.glob("*.safetensors")):
        _refuse_other_weights(directory)
    for weights in sorted(directory.glob("*.safetensors")):
        _check_weights(weights)


def read_text_config(directory: Path, trust_remote_code: bool) -> Any:
    """Return the config of the language model in a model directory, with the defaults of its architecture."""
    return read_config(directory, trust_remote_code).get_text_config()


def local_model(model: str, revision: str | None = None) -> Path | None:
    """Return the model directory of `model` if it is on this machine: a directory, or a Hub id in the cache."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of each tensor, from the headers of the weight files; None where one cannot be read."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in sorted(directory.glob("*.safetensors")):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")  # of the header, which is JSON
                header = json.loads(file.read(min(length, _MAX_HEADER)))
            header.pop("__metadata__", None)
            shapes |= {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return shapes or None


def stated_positions(directory: Path) -> int | None:
    """Return the number of positions that `config.json` states, without importing transformers; None if it does not."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        config = config.get("text_config", config)
        positions = config.get("max_position_embeddings", config.get("n_positions"))
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    return positions if isinstance(positions, int) and positions > 0 else None


def positions_of(directory: Path, trust_remote_code: bool) -> int | None:
    """Return the number of positions of a model; None if it has no maximum or transformers cannot read its config."""
    try:
        config = read_text_config(directory, trust_remote_code)
    except IgrpoError:
        return None
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def load_tokenizer(directory: Path, trust_remote_code: bool) -> Any:
    """Return the tokenizer of a model directory, which gives the characters of each token.

    Raises MissingInputError without a tokenizer, and IgrpoError for one that cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise MissingInputError(
            f"{directory} has no tokenizer", hint="save it there: tokenizer.save_pretrained(directory)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise IgrpoError(
            f"the tokenizer of {directory} cannot be loaded: {error}",
            hint="a tokenizer with its own code needs policy.trust_remote_code = true",
        ) from error
    if not tokenizer.is_fast:
        raise IgrpoError(
            f"the tokenizer of {directory} does not give the characters of each token",
            hint="use a model with a tokenizer.json",
        )
    return tokenizer


def load_causal_lm(directory: Path, dtype: Any, *, trust_remote_code: bool = False) -> Any:
    """Return the causal language model of a model directory, on the CPU and in evaluation mode.

    `dtype` is a dtype of torch, or "auto" for that of the checkpoint. Raises as `check_model_directory`, IgrpoError for
    an architecture that transformers cannot load, and DamagedFileError where the tensors of the weight files are not
    those of the configuration: transformers would fill a missing one with random numbers and ignore an unexpected one.
    """
    import transformers
    from safetensors import SafetensorError

    check_model_directory(directory)
    config = supported_config(directory, trust_remote_code=trust_remote_code)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = model_class(config, directory).from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            **_attention_of(config),
            ignore_mismatched_sizes=True,  # reported below with the name of the tensor, which transformers leaves out
        )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise IgrpoError(
            f"{directory / 'config.json'} and its weights cannot be loaded as a language model: {error}"
        ) from error
    model, loading = loaded
    _check_tensors(directory, loading)
    unify(model)
    return model.eval()


def unloaded_causal_lm(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Return the model of `load_causal_lm` in float32 with weights of no meaning, from its configuration alone.

    It reads no weights. Under a `FakeTensorMode` of torch it takes no memory for them either.
    """
    config = supported_config(directory, trust_remote_code=trust_remote_code)
    model: Any = model_class(config, directory).from_config(
        config, dtype="float32", trust_remote_code=trust_remote_code, **_attention_of(config)
    )
    unify(model)
    return model.eval()


def _attention_of(config: Any) -> dict[str, str]:
    """Return the implementation of attention to load a model with, if it has to be named."""
    has_softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    # The other implementations of attention ignore a soft cap (Gemma 2).
    return {"attn_implementation": "eager"} if has_softcap else {}


def _check_tensors(directory: Path, loading: dict[str, Any]) -> None:
    config, files = (
        directory / "config.json",
        ", ".join(sorted(path.name for path in directory.glob("*.safetensors"))[:3]),
    )
    problems = {
        "missing_keys": f"{config} asks for {{}} tensors that are not in {files}",
        "mismatched_keys": f"{config} asks for {{}} tensors that have another shape in {files}",
        "unexpected_keys": f"{files} in {directory} holds {{}} tensors that config.json does not ask for",
    }
    for kind, problem in problems.items():
        if names := sorted(name if isinstance(name, str) else name[0] for name in loading[kind]):
            raise DamagedFileError(f"{problem.format(len(names))}, {names[0]} first", hint=_DOWNLOAD_AGAIN)


def _weight_files(index: Path) -> set[str]:
    table = _read_object(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise DamagedFileError(f"{index} has no weight_map of tensors and files", hint=_DOWNLOAD_AGAIN)
    return set(table.values())


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not valid JSON: {error}", hint=_DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} is not a JSON object", hint=_DOWNLOAD_AGAIN)
    return value


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(f"{path} is not a safetensors file: {error}", hint=_DOWNLOAD_AGAIN) from error


def find_tensor(directory: Path, name: str) -> Path:
    """Return the weight file that contains a tensor, or the directory if no file has this name."""
    from safetensors import safe_open

    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            if name in file.keys():  # noqa: SIM118 - not a mapping
                return path
    return directory


def _refuse_other_weights(directory: Path) -> None:
    names = sorted(path.name for path in directory.iterdir() if path.is_file())
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        raise IgrpoError(
            f"{directory} has no safetensors, only pickled weights ({', '.join(pickled[:3])}), which can run code",
            hint="if you trust the model, convert it to safetensors: model.save_pretrained(directory)",
        )
    raise MissingInputError(
        f"{directory} has no *.safetensors; it has {', '.join(names[:8])}",
        hint="give a directory with safetensors weights",
    )
