"""Folders of images, one folder a class: `DIR/CLASS/*.png|jpg|jpeg`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hpcmass.data.sources.base import Arrays, SourceField, pick
from hpcmass.errors import CorruptError, DataError
from hpcmass.files import storage_errors

SUFFIXES = (".png", ".jpg", ".jpeg")
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class ImageSource:
    """Decoded images `image`, uint8 (channels, height, width), and their class `label`, int64."""

    path: Path
    names: tuple[str, ...]
    labels: tuple[int, ...]
    grey: bool
    resize: tuple[int, int] | None
    fields: tuple[SourceField, ...]
    kind: str = "images"

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.names)

    @property
    def files(self) -> tuple[Path, ...]:
        """All images."""
        return tuple(self.path / name for name in self.names)

    def select(self, names: Sequence[str]) -> ImageSource:
        """The same with these fields only."""
        return replace(self, fields=pick(self.fields, names, self.path))

    def read(self, start: int, stop: int) -> Arrays:
        """Images and labels start … stop."""
        blocks: Arrays = {}
        for one in self.fields:
            if one.name == "label":
                blocks["label"] = np.array(self.labels[start:stop], np.int64)
                continue
            images = np.empty((stop - start, *one.shape), np.uint8)
            for row, name in enumerate(self.names[start:stop]):
                images[row] = _decode(self.path / name, self.grey, self.resize)
            blocks["image"] = images
        return blocks


def open_images(
    path: Path, names: Sequence[str] | None = None, resize: tuple[int, int] | None = None
) -> ImageSource:
    """Samples from a folder of images, one subfolder a class; classes are numbered in sorted order.

    The images become RGB, or grey if all of them are; transparency is dropped.

    Args:
        path: The folder.
        names: Fields to take out of `image` and `label`.
        resize: (height, width) that every image is scaled to; None: all must have one size already.

    Raises:
        DataError: There are no images, or their sizes differ (the message names a file).
        CorruptError: A file is not an image.
    """
    with storage_errors(path, "list the folder"):
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        found = [
            (f"{folder.name}/{file.name}", label)
            for label, folder in enumerate(folders)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
    if not found:
        raise DataError(
            "holds no images", where=path, hint=f"put them into a folder a class: {path}/CLASS/*.png"
        )
    grey = True
    size: tuple[int, int] | None = None
    for name, _ in found:
        file_size, mode = _header(path / name)
        grey = grey and mode in _GREY
        if resize is None and size is not None and file_size != size:
            raise DataError(
                f"is {file_size[0]}x{file_size[1]} (height x width), the images before it {size[0]}x{size[1]}",
                where=path / name,
                hint="scale all of them to one size with `resize`",
            )
        size = size or file_size
    assert size is not None
    height, width = resize or size
    classes = tuple(folder.name for folder in folders)
    fields = (
        SourceField("image", np.dtype(np.uint8), (1 if grey else 3, height, width)),
        SourceField("label", np.dtype(np.int64), (), classes),
    )
    return ImageSource(
        path,
        tuple(name for name, _ in found),
        tuple(label for _, label in found),
        grey,
        resize,
        fields if names is None else pick(fields, names, path),
    )


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """(height, width) and mode of an image, from its header alone."""
    with storage_errors(path, "read the file"), open(path, "rb") as file:
        try:
            with Image.open(file) as image:
                size, mode = (image.height, image.width), image.mode
        except (UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise CorruptError("is not a readable image", where=path) from error
    if mode not in _GREY + _COLOUR:
        raise DataError(
            f"has pixels of mode {mode}, more than 8 bits each",
            where=path,
            hint="convert such images to arrays (.npy) yourself",
        )
    return size, mode


def _decode(path: Path, grey: bool, resize: tuple[int, int] | None) -> np.ndarray[Any, Any]:
    """Pixels, uint8 (channels, height, width)."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if grey else "RGB")
    except FileNotFoundError as error:
        raise DataError("has vanished", where=path) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptError(f"is a damaged image ({error})", where=path) from error
    if resize is not None and (image.height, image.width) != resize:
        image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if grey else np.moveaxis(pixels, 2, 0)
