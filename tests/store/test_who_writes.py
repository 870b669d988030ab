"""Whatever publishes or removes a file is in `store/atomic.py`: one place to read, and to inject faults into."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "igrpo_cli"
OF_MODULES = {
    "os": {
        "link",
        "rename",
        "replace",
        "fsync",
        "unlink",
        "remove",
        "mkdir",
        "makedirs",
        "rmdir",
        "symlink",
        "truncate",
    },
    "shutil": {"rmtree", "copytree", "copyfile", "copy", "copy2", "move"},
}
OF_PATHS = {"write_text", "write_bytes", "mkdir", "unlink", "rmdir", "rename", "touch", "hardlink_to", "symlink_to"}
OF_LIBRARIES = {"save_file", "save_pretrained", "ParquetWriter", "HuggingFaceStorageWriter"}
ALLOWED = {
    "store/atomic.py": "publishes",
    "store/tables.py": "writes the temporary that `publish_file` gives it",
    "commands/doctor.py": "tries hard links and locks in a hidden directory that goes away",
    "training/adapters.py": "writes into a staging directory, which is published by a rename",
    "training/checkpoint.py": "the same",
    "training/restore.py": "the same",
    "rewards/judge_cache.py": "adds whole lines to a file of its own; a half one is passed over",
    "cli/app.py": "opens /dev/null in place of a closed stdout",
    "ui/console.py": "opens /dev/null in place of a stderr that takes nothing",
    "commands/stages.py": "copies into the temporary that `publish_file` gives it",
    "store/deltas.py": "fills staging directories",
    "store/locks.py": "holds a lock, which says nothing",
}
"""Files that write, and why that is no publication."""


def writes(path):
    """Names of the calls of a file that change something on disk."""
    return {name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if (name := written_by(node))}


def written_by(node):
    if not isinstance(node, ast.Call):
        return None
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    module = called.value.id if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) else ""
    if name in OF_MODULES.get(module, OF_PATHS | OF_LIBRARIES) or (name == "open" and opens_for_writing(node)):
        return name
    return None


def opens_for_writing(call):
    """`open(path, "w")`, `path.open("ab")`, `os.open(path, os.O_WRONLY)`."""
    words = [*call.args, *(keyword.value for keyword in call.keywords)]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    flags = {node.attr for word in words for node in ast.walk(word) if isinstance(node, ast.Attribute)}
    return any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes) or bool(flags & {"O_WRONLY", "O_CREAT"})


def test_only_these_files_write():
    found = {path.relative_to(PACKAGE).as_posix(): writes(path) for path in PACKAGE.rglob("*.py")}
    assert {name for name, calls in found.items() if calls} == set(ALLOWED)


def test_what_the_walk_finds(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        'import os, shutil\nos.replace(a, b)\n"x".replace("a", "b")\npath.open()\nopen(path, "rb")\npath.open("ab")\n'
        "os.open(path, os.O_CREAT)\nshutil.rmtree(path)\nsave_file(tensors, path)\npath.write_text(text)\n"
    )
    assert writes(file) == {"replace", "open", "rmtree", "save_file", "write_text"}
