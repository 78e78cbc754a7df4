"""Image folders as ImageNet users have them: root/train/CLASS/*.jpeg and root/val/CLASS/*.jpeg.

Files are decoded by Pillow when asked for and never kept, so a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normstab.errors import NormstabError
from normstab.experiment.data.image_sources import Pixels, Source

__all__ = ["FolderImages", "read_folder"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
DEFAULT_SIDE = 224
DECODERS = 8
# Source: He et al. 2016, section 3.4: the shorter side 256 for a crop of 224.
RESIZE_PER_CROP = 256 / 224


@dataclass(frozen=True)
class FolderImages:
    """Image files by number, as uint8 N 3 S S: shorter side resized to 8/7 of `side`, then the central crop."""

    paths: tuple[Path, ...]
    side: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: NDArray[np.int64]) -> Pixels:
        wanted = [self.paths[i] for i in index]
        with ThreadPoolExecutor(DECODERS) as pool:
            return np.stack(list(pool.map(self._decoded, wanted)))

    def _decoded(self, path: Path) -> Pixels:
        """Return one image, 3 S S."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise NormstabError(f"{path}: not an image: {error}") from error
        factor = self.side * RESIZE_PER_CROP / min(image.size)
        width, height = (max(self.side, round(length * factor)) for length in image.size)
        left, upper = (width - self.side) // 2, (height - self.side) // 2
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        cropped = resized.crop((left, upper, left + self.side, upper + self.side))
        return np.asarray(cropped, np.uint8).transpose(2, 0, 1)


def read_folder(root: Path | None, *, side: int | None = None) -> Source:
    """Return the Source of `root/train` and `root/val` (or `root/test`), classes numbered in order of their names.

    Its sha256 is that of the files' names and sizes, not of their bytes: ImageNet has 150 GB of those.
    """
    if root is None:
        raise NormstabError("an image folder needs dataset.root, a folder with train/CLASS/*.jpeg and val/CLASS/*.jpeg")
    _require_pillow()
    test_folder = root / "val" if (root / "val").is_dir() else root / "test"
    names = _class_names(root / "train")
    train, train_labels = _files(root / "train", names)
    test, test_labels = _files(test_folder, names)
    digest = hashlib.sha256()
    for path in (*train, *test):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
    wanted = DEFAULT_SIDE if side is None else side
    images = FolderImages(train, wanted), FolderImages(test, wanted)
    return Source(images[0], train_labels, images[1], test_labels, len(names), digest.hexdigest())


def _class_names(folder: Path) -> list[str]:
    """Return the names of the class folders, sorted."""
    names = sorted(place.name for place in folder.iterdir() if place.is_dir()) if folder.is_dir() else []
    if not names:
        raise NormstabError(f"{folder}: expected one folder of images per class there")
    return names


def _files(folder: Path, names: Sequence[str]) -> tuple[tuple[Path, ...], NDArray[np.int64]]:
    """Return the image files under `folder/NAME` in order, and their labels."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(path for path in (folder / name).glob("**/*") if path.suffix.lower() in SUFFIXES)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise NormstabError(f"{folder}: no image files ({', '.join(sorted(SUFFIXES))}) in folders named like train's")
    return tuple(paths), np.array(labels, np.int64)


def _require_pillow() -> None:
    """Raise where Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401 - asks only whether it is there
    except ImportError as error:
        raise NormstabError(
            "image folders are decoded by Pillow, which is not installed: pip install pillow"
        ) from error
