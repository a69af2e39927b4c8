"""The ONNX form of a model that is served: made once for each content, in a process of its own, and cached."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hpcmass.errors import AlreadyExists, CorruptError, HpcmassError, NotFound, RecipeError, StorageError
from hpcmass.files import cache_folder, make_dir, read_json, replace_json, storage_errors
from hpcmass.train.bundle import read_bundle

_PACKAGES = ("hpcmass", "torch", "onnx", "onnxruntime", "onnxscript", "skl2onnx", "scikit-learn", "numpy")
_LIMIT_S = 600.0
_LAYOUT = 1  # of the cache; another number makes all anew
_SAMPLES = 64


def onnx_form(folder: Path) -> Path:
    """The bundle of a model's ONNX form, from the user's cache or made now.

    It is made in a process of its own: exporters take seconds and memory, and a server is better without both.
    That a model has no such form is kept too.

    Args:
        folder: The model's own bundle, verified.

    Raises:
        RecipeError: It has none, or one that computes something else.
        StorageError: The cache cannot be written.
    """
    target = cache_folder("onnx") / _key(folder)
    refused = target.with_suffix(".json")
    if _whole(target):
        return target
    if refused.is_file():
        raise RecipeError(str(read_json(refused).get("why")))
    make_dir(target.parent)
    scratch = target.parent / f".making-{secrets.token_hex(8)}"
    why = _made(folder, scratch)
    if why is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        replace_json(refused, {"format": 1, "why": why}, durable=False)
        raise RecipeError(why)
    try:
        with storage_errors(target, "keep the ONNX form"):
            os.rename(scratch, target)
    except (AlreadyExists, StorageError):
        shutil.rmtree(scratch, ignore_errors=True)
        if not _whole(target):  # else another process was faster
            raise
    return target


def _whole(target: Path) -> bool:
    """Whether a form is there as it was written; one that is not is removed, to be made anew."""
    if not target.is_dir():
        return False
    try:
        read_bundle(target, verify=True)
    except (NotFound, CorruptError):
        shutil.rmtree(target, ignore_errors=True)
        return False
    return True


def _made(folder: Path, scratch: Path) -> str | None:
    """Make the form; why there is none, as far as that is the model's nature."""
    command = [sys.executable, "-m", "hpcmass.workflow.onnx_forms", str(folder.absolute()), str(scratch)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HpcmassError(f"the ONNX form could not be made: {error}") from error
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    if done.returncode != 3:  # killed, out of memory: the next replica may try again
        raise HpcmassError(f"the ONNX form could not be made: {said[0][:300]}")
    return said[0][:500]


def _key(folder: Path) -> str:
    """One for each content of a bundle and each set of versions that may change what is made of it."""
    digest = hashlib.sha256(f"{_LAYOUT}\n".encode())
    for path in sorted(folder.rglob("model.json")):  # with the digests of all that lies beside it
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{package} none\n".encode())
    return digest.hexdigest()[:40]


def _main(folder: str, target: str) -> int:
    from hpcmass.export import export_bundle
    from hpcmass.serve.choice import samples
    from hpcmass.serve.runners import BundleRunner
    from hpcmass.train.model import load_bundle

    try:
        model = load_bundle(Path(folder))
        given = samples(BundleRunner(model).interface, _SAMPLES)
        try:
            model({name: value[:2] for name, value in given.items()})
        except HpcmassError:  # it asks for more than its signature says
            given = {name: value * 0 for name, value in given.items()}
        export_bundle(model, "onnx", Path(target), given)
    except HpcmassError as error:
        print(" ".join(error.message.split()), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
