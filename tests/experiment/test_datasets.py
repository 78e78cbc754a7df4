"""Data sets: what the files hold is what the network sees, in an order that only the seed decides."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from normstab.errors import NormstabError
from normstab.experiment.data.datasets import DATASETS, data_sha256, load_dataset
from normstab.experiment.data.image_sources import DEBIAN_ROOT, SAMPLE
from normstab.experiment.data.resizing import resize
from normstab.experiment.data.samples.make_sample import SHA256, make_sample
from normstab.experiment.data.sampling import epoch_order, moves, stratified
from normstab.experiment.scenario.spec import DatasetSpec

RNG = np.random.default_rng(0)
NEEDS_FULL_SET = pytest.mark.skipif(not DEBIAN_ROOT.exists(), reason="dataset-fashion-mnist is not installed")


def write_idx(root: Path, n: int) -> None:
    for part in ("train", "t10k"):
        images = RNG.integers(0, 256, (n, 28, 28), np.uint8)
        head = struct.pack(">BBBBIII", 0, 0, 8, 3, n, 28, 28)
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        labels = (np.arange(n) % 10).astype(np.uint8)
        (root / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, n) + labels.tobytes())


def cifar(n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(0, 256, (n, 3072), np.uint8), (np.arange(n) % classes).astype(np.uint8)


def write_cifar10(root: Path, form: str) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        rows, labels = cifar(20, 10)
        if form == "binary":
            (root / f"{name}.bin").write_bytes(np.hstack([labels[:, None], rows]).tobytes())
        else:
            (root / name).write_bytes(pickle.dumps({b"data": rows, b"labels": labels.tolist()}, protocol=2))


def write_cifar100(root: Path, form: str) -> None:
    for name in ("train", "test"):
        rows, labels = cifar(200, 100)
        if form == "binary":
            (root / f"{name}.bin").write_bytes(np.hstack([labels[:, None] // 5, labels[:, None], rows]).tobytes())
        else:
            batch = {b"data": rows, b"fine_labels": labels.tolist(), b"coarse_labels": (labels // 5).tolist()}
            (root / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_folder(root: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, n in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = RNG.integers(0, 256, (40, 50 + i, 3), np.uint8)
                image.fromarray(pixels).save(root / part / name / f"{i}.png")


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, DatasetSpec]:
    """Every row of the catalogue over small files in its own layout."""
    writers = {"fashion-mnist": lambda p: write_idx(p, 50), "imagefolder": write_folder, "imagenet": write_folder}
    writers |= {"cifar10": lambda p: write_cifar10(p, "binary"), "cifar100": lambda p: write_cifar100(p, "binary")}
    made = {}
    for name in DATASETS:
        root = tmp_path / name
        root.mkdir()
        if name in writers:
            writers[name](root)
        size = 32 if name.startswith("image") else None
        made[name] = DatasetSpec(name, root=str(root) if name in writers else None, size=size)
    return made


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_gives_batches_of_its_shape(name: str, specs: dict[str, DatasetSpec]) -> None:
    data = load_dataset(specs[name])
    row = DATASETS[name]
    x, y = data.train_batch(torch.arange(4))
    side = specs[name].size or row.side
    assert (x.shape, x.dtype, y.dtype) == ((4, row.channels, side, side), torch.float32, torch.int64)
    assert sum(len(labels) for _, labels in data.test_batches(7)) == len(data.test_y)
    assert int(data.train_y.max()) < data.classes
    assert data.sha256 == data_sha256(specs[name])


@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("image")])
def test_training_pixels_have_mean_zero_and_deviation_one(name: str, specs: dict[str, DatasetSpec]) -> None:
    data = load_dataset(specs[name])
    x, _ = data.train_batch(torch.arange(len(data.train_y)))
    assert x.double().mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.double().var((0, 2, 3), unbiased=False) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [256.0, 2.0**-12])
def test_a_power_of_two_scales_the_input_exactly(scale: float) -> None:
    plain, scaled = (load_dataset(DatasetSpec("synthetic", scale=s)) for s in (1.0, scale))
    index = torch.arange(32)
    assert torch.equal(scaled.train_batch(index)[0], plain.train_batch(index)[0] * scale)


def test_the_embedded_sample_is_balanced() -> None:
    data = load_dataset(DatasetSpec("fashion-mnist-sample"))
    assert data.train_y.bincount().tolist() == [600] * 10
    assert data.test_y.bincount().tolist() == [200] * 10


@NEEDS_FULL_SET
def test_the_embedded_sample_is_what_its_script_makes(tmp_path: Path) -> None:
    make_sample(DEBIAN_ROOT, tmp_path / "sample.npz")
    with np.load(tmp_path / "sample.npz") as made, np.load(SAMPLE) as embedded:
        assert set(made) == set(embedded)
        assert all(np.array_equal(made[name], embedded[name]) for name in made)


def test_the_sample_is_not_made_from_other_files(tmp_path: Path) -> None:
    write_idx(tmp_path, 10)
    for name in SHA256:
        (tmp_path / name).write_bytes(b"other")
    with pytest.raises(NormstabError, match="sha256 is"):
        make_sample(tmp_path, tmp_path / "sample.npz")


def test_the_licence_lies_beside_the_sample() -> None:
    assert "Zalando SE" in (SAMPLE.parent / "LICENSE-fashion-mnist").read_text()


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize(("name", "write"), [("cifar10", write_cifar10), ("cifar100", write_cifar100)])
def test_cifar_is_found_in_the_folder_it_unpacks_to(tmp_path: Path, name: str, write, form: str) -> None:  # type: ignore[no-untyped-def]
    stem = {"cifar10": "cifar-10-batches", "cifar100": "cifar-100"}[name]
    ending = {("cifar10", "python"): "py", ("cifar10", "binary"): "bin"}.get((name, form), form)
    folder = tmp_path / f"{stem}-{ending}"
    folder.mkdir()
    write(folder, form)
    nested, direct = (load_dataset(DatasetSpec(name, root=str(root))) for root in (tmp_path, folder))
    assert nested.sha256 == direct.sha256
    assert nested.train_y[:12].tolist() == list(range(12)) if name == "cifar100" else nested.train_y[9] == 9


def test_python_and_binary_batches_hold_the_same_images(tmp_path: Path) -> None:
    rows, labels = cifar(20, 10)
    for form in ("python", "binary"):
        (tmp_path / form).mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / "binary" / f"{name}.bin").write_bytes(np.hstack([labels[:, None], rows]).tobytes())
        batch = {b"data": rows, b"labels": labels.tolist()}
        (tmp_path / "python" / name).write_bytes(pickle.dumps(batch, protocol=2))
    assert len({data_sha256(DatasetSpec("cifar10", root=str(tmp_path / form))) for form in ("python", "binary")}) == 1


class Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code ran",))


def test_a_batch_file_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Malice()}, protocol=2))
    with pytest.raises(NormstabError, match="no place in an image batch"):
        load_dataset(DatasetSpec("cifar10", root=str(tmp_path)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DatasetSpec("fashon-mnist"), "did you mean 'fashion-mnist'"),
        (DatasetSpec("cifar10"), r"give dataset\.root"),
        (DatasetSpec("imagenet"), r"needs dataset\.root"),
        (DatasetSpec("cifar10", root="/nonexistent"), "expected data_batch_1"),
        (DatasetSpec("fashion-mnist", root="/nonexistent"), r"/nonexistent.*/usr/share/datasets/fashion-mnist"),
        (DatasetSpec("imagefolder", root="/nonexistent"), "one folder of images per class"),
        (DatasetSpec("fashion-mnist-sample", train=6001), "6001 images were asked for, the set has 6000"),
    ],
)
def test_what_is_missing_is_said(spec: DatasetSpec, message: str) -> None:
    with pytest.raises(NormstabError, match=message):
        load_dataset(spec)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x09\x03" + bytes(12), b"\0\0\x08\x01\0\0\0\x05abc"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(NormstabError, match="train-images-idx3-ubyte"):
        load_dataset(DatasetSpec("fashion-mnist", root=str(tmp_path)))


@pytest.mark.parametrize("n", [10, 95, 1000])
def test_a_part_of_a_set_is_balanced(n: int) -> None:
    data = load_dataset(DatasetSpec("fashion-mnist-sample", train=n))
    counts = data.train_y.bincount(minlength=10)
    assert len(data.train_y) == n
    assert counts.max() - counts.min() <= 1


def test_stratified_takes_the_first_of_each_class_in_turn() -> None:
    assert stratified(np.array([0, 0, 0, 1, 1, 2]), 4).tolist() == [0, 1, 3, 5]


@pytest.mark.parametrize("side", [1, 7, 14, 16, 20, 28, 40])
def test_resizing_is_the_mean_over_the_new_pixels_area(side: int) -> None:
    images = RNG.integers(0, 256, (3, 1, 28, 28), np.uint8)
    # A nearest enlargement by `side` makes every old pixel side x side; blocks of 28 x 28 of it are the new pixels.
    enlarged = images.astype(np.int64).repeat(side, 2).repeat(side, 3)
    blocks = enlarged.reshape(3, 1, side, 28, side, 28).sum((3, 5))
    assert np.array_equal(resize(images, side), (2 * blocks + 784) // 1568)


def test_the_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): epoch_order(seed, epoch, 100).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(100)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert epoch_order(0, 1, 100).tolist() == orders[0, 1]


def test_corners_are_uniform_and_flips_are_fair() -> None:
    drawn = moves(3, 0, 9000, pad=1)
    for corners in (drawn.down, drawn.right):
        counts = np.bincount(corners, minlength=3)
        assert len(counts) == 3
        # Four standard deviations of a count of 9000 with probability 1/3.
        assert abs(counts - 3000).max() < 4 * 44.8
    assert abs(drawn.is_flipped.sum() - 4500) < 4 * 47.5


def test_augmentation_depends_on_the_image_not_on_its_batch() -> None:
    data = load_dataset(DatasetSpec("synthetic", augment=("crop", "flip")))
    augmentation = data.augmentation(seed=5, epoch=2)
    together, _ = data.train_batch(torch.arange(8), augmentation)
    alone, _ = data.train_batch(torch.tensor([6]), augmentation)
    assert torch.equal(together[6], alone[0])
    assert not torch.equal(together, data.train_batch(torch.arange(8), data.augmentation(seed=5, epoch=3))[0])


def test_a_crop_is_a_window_of_the_zero_padded_image() -> None:
    data = load_dataset(DatasetSpec("synthetic", augment=("crop", "flip")))
    augmentation = data.augmentation(seed=0, epoch=0)
    assert augmentation is not None
    assert isinstance(data.train_x, torch.Tensor)
    drawn = moves(0, 0, len(data.train_y), pad=2)
    moved = augmentation.apply(data.train_x[:6], torch.arange(6))
    for i in range(6):
        padded = np.pad(data.train_x[i].numpy(), ((0, 0), (2, 2), (2, 2)))
        window = padded[:, drawn.down[i] : drawn.down[i] + 16, drawn.right[i] : drawn.right[i] + 16]
        assert np.array_equal(moved[i].numpy(), window[:, :, ::-1] if drawn.is_flipped[i] else window)


def test_torchs_generator_is_not_consumed() -> None:
    before = torch.get_rng_state()
    data = load_dataset(DatasetSpec("synthetic", augment=("crop", "flip")))
    data.train_batch(torch.arange(8), data.augmentation(seed=0, epoch=0))
    assert torch.equal(before, torch.get_rng_state())
