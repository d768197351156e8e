from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import DataError
from convoy.contract.image import to_pixels
from convoy.training.data import Dataset, load_folder

Write = Callable[..., Path]


def sizes(data: Dataset) -> tuple[int, ...]:
    return tuple(len(split) for split in data.splits.values())


def test_a_sub_folder_is_a_class_and_its_name_the_label(photos: Path) -> None:
    data = load_folder(photos)
    assert (data.name, data.labels) == ("photos", ("cat", "dog"))
    for split in data.splits.values():
        for pixels, label, file in zip(split.images[:], split.labels, split.files, strict=True):
            assert file.split("/")[0] == data.labels[label]
            assert np.array_equal(pixels, to_pixels(photos / file, data.image))


def test_each_class_is_shared_out_alike(photos: Path) -> None:
    data = load_folder(photos, validation_fraction=0.25)
    assert data.counts() == {"train": (6, 6), "validation": (2, 2), "test": (2, 2)}
    files = [file for split in data.splits.values() for file in split.files]
    assert len(set(files)) == len(files) == 20


def test_the_seed_moves_the_validation_split_alone(photos: Path) -> None:
    first, again, other = (load_folder(photos, seed=seed) for seed in (1, 1, 2))
    assert first.sha256() == again.sha256() != other.sha256()
    assert first.test.files == other.test.files
    assert first.validation.files != other.validation.files


def test_classes_and_files_come_in_natural_order_wherever_they_lie(tmp_path: Path, write_image: Write) -> None:
    for label in ("10", "9", "2"):
        for name in ("b10.png", "b9.png", "deeper/a.png"):
            write_image(f"d/{label}/{name}")
    data = load_folder(tmp_path / "d")
    assert data.labels == ("2", "9", "10")
    files = sorted(file for split in data.splits.values() for file in split.files)
    assert files == sorted(f"{label}/{name}" for label in data.labels for name in ("b10.png", "b9.png", "deeper/a.png"))


def test_photographs_are_cut_square_and_signs_fitted_whole(photos: Path, tmp_path: Path, write_image: Write) -> None:
    assert load_folder(photos).image.model_dump(exclude={"interpolation"}) == {
        "height_px": 224,
        "width_px": 224,
        "channels": 3,
        "resize": "crop",
    }
    for label in "ab":
        for i in range(3):
            write_image(f"signs/{label}/{i}.png", mode="L", size=(20, 20))
    image = load_folder(tmp_path / "signs").image
    assert (image.dims, image.resize) == ((20, 20, 1), "fit")  # squares of one size stay as they are
    assert load_folder(tmp_path / "signs", image_size_px=28).image.dims == (28, 28, 1)
    write_image("signs/a/larger.png", mode="L", size=(21, 21))
    assert load_folder(tmp_path / "signs").image.dims == (224, 224, 1)


def test_grey_images_stored_in_colour_are_grey_until_one_is_not(tmp_path: Path, write_image: Write) -> None:
    for label in "ab":
        for i in range(3):
            path = write_image(f"d/{label}/{i}.png", mode="L", size=(8, 8))
            Image.open(path).convert("RGB").save(path)
    assert load_folder(tmp_path / "d").image.channels == 1
    write_image("d/b/last.png", size=(8, 8))
    assert load_folder(tmp_path / "d").image.channels == 3


def test_images_of_every_mode_are_read_as_the_client_reads_them(tmp_path: Path, write_image: Write) -> None:
    for mode, suffix in {"RGB": "jpg", "RGBA": "png", "P": "gif", "CMYK": "jpg", "L": "png", "LA": "png", "1": "png"}.items():
        write_image(f"d/a/{mode}.{suffix}", mode=mode)
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "d/a/deep.png")
    write_image("d/a/one.png", size=(1, 1))
    for i in range(3):
        write_image(f"d/b/{i}.PNG")
    data = load_folder(tmp_path / "d", image_size_px=16)
    assert sum(sizes(data)) == 12
    for split in data.splits.values():
        for pixels, file in zip(split.images[:], split.files, strict=True):
            assert np.array_equal(pixels, to_pixels(tmp_path / "d" / file, data.image))


def test_folders_of_splits_are_taken_as_they_are(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "Valid", "test"):
        shutil.copytree(photos, tmp_path / "given" / split)
    shutil.rmtree(tmp_path / "given" / "test" / "dog")
    (tmp_path / "given" / "test" / "cat" / "0.png").unlink()
    data = load_folder(tmp_path / "given")
    assert data.counts() == {"train": (10, 10), "validation": (10, 10), "test": (9, 0)}
    assert data.test.files[0] == "test/cat/1.png"


@pytest.mark.parametrize(
    ("given", "expected"),
    [(("train",), (14, 2, 4)), (("train", "val"), (16, 20, 4)), (("train", "test"), (18, 2, 20))],
)
def test_a_split_that_is_not_given_is_drawn_from_the_training_images(
    photos: Path, tmp_path: Path, given: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    for split in given:
        shutil.copytree(photos, tmp_path / "given" / split)
    data = load_folder(tmp_path / "given")
    assert sizes(data) == expected
    assert {"train", *given} >= {file.split("/")[0] for file in data.test.files}


def test_a_class_may_be_called_train(photos: Path) -> None:
    shutil.copytree(photos / "dog", photos / "train" / "old")
    assert load_folder(photos).labels == ("cat", "dog", "train")


def test_two_folders_for_one_split_are_refused(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "validation"):
        shutil.copytree(photos, tmp_path / "given" / split)
    with pytest.raises(DataError, match="expected one folder for validation, found val and validation"):
        load_folder(tmp_path / "given")


def test_a_class_that_only_the_test_has_is_refused(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "given" / split)
    shutil.rmtree(tmp_path / "given" / "train" / "dog")
    shutil.copytree(photos / "dog", tmp_path / "given" / "train" / "bird")
    with pytest.raises(DataError, match=r"given/test: expected the classes of .*given/train, found others: dog"):
        load_folder(tmp_path / "given")


def test_a_split_without_images_is_refused(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "given" / "train")
    (tmp_path / "given" / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"given/val: expected images .*found none. Add some, or remove val"):
        load_folder(tmp_path / "given")


def huge_png() -> bytes:
    """A PNG that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def spoil(photos: Path) -> None:
    half = (photos / "cat/1.png").read_bytes()
    (photos / "cat/1.png").write_bytes(half[: len(half) // 2])
    (photos / "cat/2.png").write_bytes(b"not an image")
    (photos / "dog/3.png").write_bytes(b"")
    (photos / "dog/4.png").write_bytes(huge_png())
    (photos / "dog/gone.png").symlink_to(photos / "nowhere.png")


def test_damaged_images_are_all_named_in_one_error(photos: Path) -> None:
    spoil(photos)
    with pytest.raises(DataError) as caught:
        load_folder(photos)
    message = str(caught.value)
    assert f"{photos}: 5 of 21 images cannot be read:" in message
    for line in (
        "cat/1.png: cannot be read as an image",
        "cat/2.png: expected an image (PNG, JPEG, ...), found something else",
        "dog/3.png: expected an image, found an empty file (zero bytes)",
        "dog/4.png: too large",
        "dog/gone.png: no such file",
    ):
        assert f"\n  {line}" in message
    assert "leave them out with --skip-bad" in message


def test_of_many_damaged_images_the_first_are_named_and_the_rest_counted(photos: Path, tmp_path: Path) -> None:
    for i in range(30):
        (photos / "cat" / f"bad{i}.png").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"30 of 50 images cannot be read") as caught:
        load_folder(photos)
    assert str(caught.value).count("found something else") == 20
    assert "\n  ... and 10 more\n" in str(caught.value)


def test_damaged_images_are_skipped_on_demand_and_named_and_move_no_other(photos: Path) -> None:
    whole = load_folder(photos)
    before = {file: name for name, split in whole.splits.items() for file in split.files}
    (photos / "cat/1.png").write_bytes(b"bad")
    (photos / "dog/3.png").write_bytes(b"bad")
    data = load_folder(photos, skip_bad=True)
    assert [line.split(":")[0] for line in sorted(data.skipped)] == ["cat/1.png", "dog/3.png"]
    assert "images that cannot be read and were left out: 2 of 20." in data.remarks
    after = {file: name for name, split in data.splits.items() for file in split.files}
    assert after == {file: name for file, name in before.items() if file not in ("cat/1.png", "dog/3.png")}
    for split in data.splits.values():
        for pixels, label, file in zip(split.images[:], split.labels, split.files, strict=True):
            assert np.array_equal(pixels, to_pixels(photos / file, data.image))
            assert data.labels[label] == file.split("/")[0]


def test_a_class_whose_training_images_are_all_damaged_is_refused_even_so(photos: Path) -> None:
    for path in (photos / "dog").iterdir():
        path.write_bytes(b"bad")
    with pytest.raises(DataError, match="of dog none can be read"):
        load_folder(photos, skip_bad=True)


def test_a_folder_of_nothing_but_damaged_images_is_refused_even_so(photos: Path) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"bad")
    with pytest.raises(DataError, match="of cat, dog none can be read"):
        load_folder(photos, skip_bad=True)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"none: expected a folder with one sub-folder a class, found no such folder"):
        load_folder(tmp_path / "none")
    with pytest.raises(DataError, match="found a file"):
        load_folder(tmp_path / "file")


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected images .* found nothing"):
        load_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.heic").touch()
    (tmp_path / "cat" / "2.HEIC").touch()
    with pytest.raises(DataError, match=r"found 2 other files \(.heic: 2\)"):
        load_folder(tmp_path)


def test_a_class_without_images_is_named(photos: Path) -> None:
    (photos / "bird").mkdir()
    with pytest.raises(DataError, match=r"found nothing in bird. Add images, or remove the folder"):
        load_folder(photos)
    (photos / "bird" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"found 1 other files \(.txt: 1\) in bird"):
        load_folder(photos)


def test_one_class_is_not_enough_and_the_folder_that_was_meant_is_guessed(photos: Path) -> None:
    with pytest.raises(DataError, match=rf"found photos alone. Did you mean {photos}\?"):
        load_folder(photos.parent)
    shutil.rmtree(photos / "dog")
    with pytest.raises(DataError, match=r"at least two classes, a sub-folder each, found cat alone. Add a folder"):
        load_folder(photos)


def test_images_without_sub_folders_have_no_class(photos: Path) -> None:
    with pytest.raises(DataError, match="expected one sub-folder a class, found 10 images and no sub-folders"):
        load_folder(photos / "cat")


@pytest.mark.parametrize("n", [1, 2])
def test_a_class_of_one_or_two_images_cannot_be_shared_out(photos: Path, write_image: Write, n: int) -> None:
    for i in range(n):
        write_image(f"photos/rare/{i}.png")
    with pytest.raises(
        DataError, match=rf"at least 3 images of each class for train, validation, test, found fewer of rare \({n}\)"
    ):
        load_folder(photos)
    write_image("photos/rare/2.png")
    write_image("photos/rare/3.png")
    assert load_folder(photos).labels == ("cat", "dog", "rare")


def test_one_image_a_class_is_enough_where_all_splits_are_given(tmp_path: Path, write_image: Write) -> None:
    for split in ("train", "val", "test"):
        for label in "ab":
            write_image(f"d/{split}/{label}/1.png")
    assert sizes(load_folder(tmp_path / "d")) == (2, 2, 2)


def test_what_is_left_out_is_said(photos: Path) -> None:
    for name in (".DS_Store", "cat/._1.png", "__MACOSX", "readme.txt", "cat/clip.mp4", "dog/list.txt"):
        (photos / name).touch()
    shutil.copy(photos / "cat/1.png", photos / "stray.png")
    data = load_folder(photos)
    assert data.remarks == (
        "files that were left out: 3 that are not images (.txt: 2, .mp4: 1) and 3 hidden ones.",
        "images that were left out, since they are in the folder of no class: stray.png.",
    )
    assert sum(sizes(data)) == 20


def test_a_folder_in_order_gives_no_remarks(photos: Path) -> None:
    data = load_folder(photos)
    assert (data.remarks, data.skipped) == ((), ())


def test_links_are_followed_but_not_in_circles(photos: Path, tmp_path: Path) -> None:
    (photos / "cat").rename(tmp_path / "elsewhere")
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "dog" / "again").symlink_to(photos)
    data = load_folder(photos)
    assert sum(sizes(data)) == 20
    assert data.remarks == (
        f"links that were not followed, since they lead back to a folder that they are in: {photos / 'dog' / 'again'}.",
    )


def test_a_folder_that_may_not_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("convoy.training.data.tree.os.scandir", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(DataError, match=rf"{photos}: cannot be read: Permission denied. Give this account the right"):
        load_folder(photos)


def test_copies_across_splits_are_said(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "given" / split)
        if split == "train":
            for path in (tmp_path / "given/train").rglob("[1-9].png"):
                Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    data = load_folder(tmp_path / "given")
    said = [remark for remark in data.remarks if "copies of training images in the test split" in remark]
    in_validation = sum(file.endswith("/0.png") for file in data.validation.files)
    assert len(said) == 1
    assert f"too small: {2 - in_validation} (" in said[0]
    assert "train/dog/0.png = test/dog/0.png" in said[0] or "train/cat/0.png = test/cat/0.png" in said[0]


def test_the_same_image_in_two_classes_is_said(photos: Path) -> None:
    shutil.copy(photos / "cat/1.png", photos / "dog/copy.png")
    (remark,) = [remark for remark in load_folder(photos).remarks if "more than one class: 1 (" in remark]
    assert "cat/1.png" in remark
    assert "dog/copy.png" in remark


def test_class_names_that_no_file_could_hold_are_refused(photos: Path) -> None:
    (photos / "dog").rename(photos / "dog\nor cat")
    with pytest.raises(DataError, match="expected class names of one line"):
        load_folder(photos)
    (photos / "dog\nor cat").rename(photos / "dog\udcff")
    with pytest.raises(DataError, match=r"expected class names in UTF-8, found dog\\udcff"):
        load_folder(photos)


def test_a_set_that_does_not_fit_into_memory_is_the_same_set(photos: Path) -> None:
    whole, part = load_folder(photos), load_folder(photos, max_bytes=5 * 224 * 224 * 3)
    assert isinstance(whole.train.images, np.ndarray)
    assert not isinstance(part.train.images, np.ndarray)
    assert part.sha256() == whole.sha256()
    for name in whole.splits:
        assert np.array_equal(part.splits[name].images[:], whole.splits[name].images)
        assert part.splits[name].files == whole.splits[name].files
    some = np.array([3, 0, 3])
    taken = part.train.take(some).take(np.array([2, 1]))
    assert np.array_equal(taken.images[:], whole.train.images[[3, 0]])
    assert taken.files == (whole.train.files[3], whole.train.files[0])


def test_the_digest_tells_pixels_that_are_made_otherwise(photos: Path) -> None:
    assert load_folder(photos, image_size_px=32).sha256() != load_folder(photos, image_size_px=33).sha256()


def test_the_digest_tells_a_file_that_changed(photos: Path) -> None:
    before = load_folder(photos).sha256()
    image = Image.open(photos / "cat/1.png")
    image.putpixel((0, 0), (0, 1, 2))
    image.save(photos / "cat/1.png")
    assert load_folder(photos).sha256() != before


def test_progress_counts_the_decoded_images(photos: Path) -> None:
    told: list[tuple[int, int]] = []
    load_folder(photos, progress=lambda done, of: told.append((done, of)))
    assert told[-1] == (20, 20)
