"""Read local files of problems: JSON lines, a JSON array, CSV, Parquet, Arrow, or a folder of those.

A folder may be one that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of Hugging Face datasets has written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from igrpo_cli.errors import DamagedFileError, IgrpoError, MissingInputError, UsageError
from igrpo_cli.problems.delimited import DELIMITERS, read_delimited
from igrpo_cli.problems.rows import BLANK_LINE, MAX_ROW_BYTES, BadRow, RawRow, Table
from igrpo_cli.texts import INVALID_ESCAPE_CURE

SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", *DELIMITERS)
SPLITS = ("train", "validation", "test")
SAVED_SPLITS, SAVED_STATE = "dataset_dict.json", "state.json"
"""Files of `save_to_disk`: one next to the folders of the splits, one in the folder of each data set."""
NO_PROBLEMS = {"dataset_info.json", "dataset_infos.json", SAVED_SPLITS, SAVED_STATE}
"""Metadata files that Hub tools write into the folder of a dataset."""
BOM = b"\xef\xbb\xbf"


def problem_files(location: Path, split: str | None = None, configs: tuple[str, ...] = ()) -> list[Path]:
    """Return the problem files of `location`, sorted: the file itself, or all files in the folder.

    `configs` limits a folder to these subfolders, `split` to the files of one split. Raises `UsageError` when a folder
    contains several splits and none is named, or contains files of a test split together with files of no split:
    reading them together would train on test problems. Raises `MissingInputError` when there is no file.
    """
    if not location.is_dir():
        _check_file(location, split, configs)
        return [location]
    folders = [location / config for config in configs] or [location]
    files = [path for folder in folders for path in _files_below(folder)]
    if split is not None:
        files = [path for path in files if split_of(path) == split]
    if not files:
        of_split = f" of the split {split}" if split else ""
        raise MissingInputError(f"{location} contains no {', '.join(SUFFIXES)} file{of_split}")
    for folder in sorted({path.parent for path in files if path.suffix == ".arrow"}):
        _check_saved(folder)
    splits = _splits_of(files)
    if len(splits) > 1:
        raise UsageError(
            f"{location} contains the splits {', '.join(splits)}",
            hint=f"name one of its files, or the split: --set data.split={splits[0]}",
        )
    unnamed = [path for path in files if split_of(path) is None]
    if unnamed and splits and splits != ["train"]:
        raise UsageError(
            f"{location} contains files of the split {splits[0]} and files of no split, such as {unnamed[0].name}",
            hint=f"name one of its files, rename those to train-…, or select the split: --set data.split={splits[0]}",
        )
    return files


def splits_below(folder: Path) -> list[str]:
    """Return the splits in the names of all files below `folder`, sorted."""
    return _splits_of(_files_below(folder))


def split_of(path: Path) -> str | None:
    """Return the split in a file name (`gsm8k_test.jsonl`, `train-00000-of-00001.parquet`), or None.

    The split of a file that `DatasetDict.save_to_disk` has written is the name of its folder.
    """
    if path.suffix == ".arrow" and (path.parent.parent / SAVED_SPLITS).is_file():
        return path.parent.name
    words = re.split(r"[-_.]", path.stem.lower())
    return next((split for split in SPLITS if split in words), None)


def open_file(path: Path, folder: Path) -> Table:
    """Open `path` as a table whose label is the path relative to `folder`."""
    label = path.relative_to(folder).as_posix()
    return Table(label, label.removesuffix(path.suffix).replace("/", "-"), read_rows(path))


def read_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of one file in order. A bad row is yielded as a `BadRow` instead of its values.

    A JSON object is one row, or the wrapper of a list of rows. Raises `DamagedFileError` when the whole file is
    unreadable: damaged Parquet, an array with invalid JSON, or CSV with a missing quote. Raises `UsageError` for an
    object with several lists.
    """
    if path.suffix in (".parquet", ".arrow"):
        from igrpo_cli.store.tables import read_external_arrow, read_external_parquet

        return enumerate((read_external_parquet if path.suffix == ".parquet" else read_external_arrow)(path), 1)
    if path.suffix in DELIMITERS:
        return read_delimited(path)
    if path.suffix != ".json":
        return _read_lines(path)
    with path.open("rb") as file:
        first = file.readline(MAX_ROW_BYTES).removeprefix(BOM).strip()
        has_more = bool(file.readline(MAX_ROW_BYTES).strip())
    is_array = first.startswith(b"[") or (not first and path.read_bytes().removeprefix(BOM).lstrip()[:1] == b"[")
    if is_array:
        return _read_array(path)
    # A first line that is a complete object, with more lines after it, is the first of JSON lines.
    whole = None if has_more and _is_json(first) else _whole_object(path, must_be=not first.endswith(b"}"))
    return _read_lines(path) if whole is None else _rows_of_object(path, whole)


def digest_of(files: list[Path], folder: Path) -> str:
    """Return the SHA-256 of one file, or of the list of lines `<sha256>  <path relative to folder>` of several."""
    digests = {path: _sha256(path) for path in files}
    if len(files) == 1:
        return digests[files[0]]
    listing = "".join(f"{digest}  {path.relative_to(folder).as_posix()}\n" for path, digest in digests.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, split: str | None, configs: tuple[str, ...]) -> None:
    if not path.is_file():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise MissingInputError(f"{path} {what}", hint=f"name a file ({', '.join(SUFFIXES)}), or a folder of them")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path} is none of {', '.join(SUFFIXES)}", hint="export the problems as JSON lines")
    if split is not None or configs:
        raise UsageError(f"{path} is one file: it has no splits or configs", hint="remove them, or name the folder")


def _files_below(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    found = [path for path in found if not _is_hidden(path.relative_to(folder))]
    return [path for path in found if path.name not in NO_PROBLEMS and not _is_cache(path)]


def _is_cache(path: Path) -> bool:
    """Return True for an Arrow file that datasets has put next to those of a saved data set."""
    return path.suffix == ".arrow" and path.name.startswith(("cache-", "tmp")) and (path.parent / SAVED_STATE).exists()


def _check_saved(folder: Path) -> None:
    """Raise `MissingInputError` when a data file of `save_to_disk` is gone, and `UsageError` for rows left out."""
    state = folder / SAVED_STATE
    saved = (_whole_object(state, must_be=True) or {}) if state.is_file() else {}
    if saved.get("_indices_data_files"):
        hint = "save it again: datasets.load_from_disk(FOLDER).flatten_indices().save_to_disk(NEW_FOLDER)"
        raise UsageError(f"{state} selects rows by an index, which igrpo does not read", hint=hint)
    names = [str(file.get("filename")) for file in saved.get("_data_files") or ()]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise MissingInputError(f"{state} lists {missing[0]}, which is missing", hint="copy the whole folder again")


def _splits_of(files: list[Path]) -> list[str]:
    return sorted({split for split in map(split_of, files) if split})


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _read_lines(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) <= MAX_ROW_BYTES:
                yield number, _parse_line(line.removeprefix(BOM) if number == 1 else line)
                continue
            length = len(line)
            while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                length += len(line)
            reason = f"the line has {length:,} bytes, the limit is {MAX_ROW_BYTES:,}"
            yield number, BadRow("row_too_long", reason)


def _parse_line(line: bytes) -> dict[str, Any] | BadRow:
    if not line.strip():
        return BadRow(BLANK_LINE, "the line is blank")
    try:
        return _as_object(_parse_json(line.rstrip()))
    except BadRow as bad:
        if bad.kind in ("invalid_json", "invalid_utf8") and not line.endswith(b"\n"):
            return BadRow("half_last_line", "the last line is truncated: it has no line end and is not complete JSON")
        return bad


def _parse_json(data: bytes) -> Any:
    try:
        return _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        raise BadRow("invalid_utf8", f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        cure = INVALID_ESCAPE_CURE if error.msg.startswith("Invalid") and "escape" in error.msg else "correct the row"
        raise BadRow("invalid_json", f"not JSON at {where} ({error.msg})", cure) from None
    except ValueError as error:
        raise BadRow("invalid_json", f"JSON that cannot be parsed ({error})") from None
    except RecursionError:
        raise BadRow("invalid_json", "JSON nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BadRow("duplicate_key", f"the key {key!r} occurs twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow("not_an_object", f"the row is not a JSON object but {type(value).__name__}")
    return value


def _read_array(path: Path) -> Iterator[RawRow]:
    try:
        rows = _parse_json(path.read_bytes().removeprefix(BOM))
    except BadRow as bad:
        hint = f"{bad.cure}: a JSON array is read as a whole"
        raise DamagedFileError(f"{path.name}: {bad.reason}", hint=hint) from bad
    if not isinstance(rows, list):
        raise IgrpoError(f"{path.name} is not an array of problems")
    yield from _numbered(rows)


def _numbered(rows: list[Any]) -> Iterator[RawRow]:
    for number, row in enumerate(rows, 1):
        try:
            yield number, _as_object(row)
        except BadRow as bad:
            yield number, bad


def _is_json(line: bytes) -> bool:
    try:
        _parse_json(line)
    except BadRow:
        return False
    return True


def _whole_object(path: Path, *, must_be: bool) -> dict[str, Any] | None:
    """Return the content of a file that is one JSON object; None for any other, or an error with `must_be`."""
    try:
        value = _parse_json(path.read_bytes().removeprefix(BOM))
    except BadRow as bad:
        if must_be:
            raise DamagedFileError(f"{path.name}: {bad.reason}", hint=bad.cure) from bad
        return None
    return value if isinstance(value, dict) else None


def _rows_of_object(path: Path, whole: dict[str, Any]) -> Iterator[RawRow]:
    """Return the rows in the only list of objects in `whole`, or `whole` as the only row."""
    lists = {name: value for name, value in whole.items() if _is_list_of_rows(value)}
    if len(lists) > 1:
        raise UsageError(
            f"{path.name} contains the lists {', '.join(lists)}",
            hint="save one of them as a file: JSON lines, or [...]",
        )
    if "data" in whole and isinstance(whole["data"], list):
        return _numbered(whole["data"])
    if not lists and whole and all(isinstance(value, list | dict) for value in whole.values()):
        raise UsageError(
            f"{path.name} holds columns ({', '.join(whole)}), not rows",
            hint='save it by rows: pandas.DataFrame.to_json(path, orient="records", lines=True)',
        )
    return _numbered(next(iter(lists.values()), [whole]))


def _is_list_of_rows(value: Any) -> bool:
    """Return True for a list of objects that are not the messages of a chat, nor the choices of a problem."""
    is_list = isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    return is_list and not all({*row} <= {"role", "content", "name", "text", "label"} for row in value)
