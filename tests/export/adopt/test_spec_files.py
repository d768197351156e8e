"""What people write down beside a model: preprocessing, class names, samples."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.contract.image import ImageSpec
from convoy.export.adopt.labels import read_labels
from convoy.export.adopt.preprocess import PRESETS, Preprocess, parse_preprocess
from convoy.export.adopt.samples import UNLABELLED, load_samples


@pytest.mark.parametrize(
    ("spec", "black", "white"),
    [
        ("imagenet", (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225), (0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225)),
        ("caffe", (-103.939, -116.779, -123.68), (151.061, 138.221, 131.32)),
        ("-1..1", (-1,), (1,)),
        ("0..1", (0,), (1,)),
        ("raw", (0,), (255,)),
        ("mnist", (-0.1307 / 0.3081,), (0.8693 / 0.3081,)),
        ("mean=123.68,116.78,103.94 std=58.4,57.1,57.4 range=255", (-123.68 / 58.4, -116.78 / 57.1, -103.94 / 57.4), None),
    ],
)
def test_black_and_white_become_what_the_preset_says(spec, black, white):
    found = parse_preprocess(spec)
    mean, std = np.array(found.mean), np.array(found.std)
    np.testing.assert_allclose(np.broadcast_to(-mean / std, len(black)), black, rtol=1e-12, atol=1e-15)
    if white is not None:
        np.testing.assert_allclose(np.broadcast_to((255 * found.scale - mean) / std, len(white)), white, rtol=1e-12)


def test_words_override_a_preset():
    found = parse_preprocess("imagenet size=299x200 color=bgr resize=fit interpolation=bicubic layout=nhwc")
    assert (found.height_px, found.width_px) == (299, 200)
    assert (found.color, found.resize, found.interpolation, found.layout) == ("bgr", "fit", "bicubic", "nhwc")
    assert found.mean == PRESETS["imagenet"].mean
    assert parse_preprocess("size=224") == Preprocess(height_px=224, width_px=224)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "found nothing"),
        ("imagnet", "found 'imagnet'"),
        ("imagenet 224", "found '224'"),
        ("imagenet mean=a,b,c", "mean=a,b,c"),
        ("mean=1,2 std=1", "three of each"),
        ("mean=123,117,104", "range=255"),
        ("std=0", "above 0"),
        ("0..1 mean=nan", "finite"),
        ("range=-1", "above 0"),
        ("size=0", "size=224"),
        ("size=224x", "size=224"),
        ("color=cmyk", "rgb, bgr, grey"),
        ("size=224 size=256", "once"),
        ("imagenet color=grey", "one for grey"),
        ("zoom=2", "zoom=2"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(spec, says):
    with pytest.raises(UsageError, match=says):
        parse_preprocess(spec)


def test_the_answer_to_a_wrong_spec_documents_every_preset_and_key():
    with pytest.raises(UsageError) as caught:
        parse_preprocess("what?")
    for word in (
        *PRESETS,
        "mean=",
        "std=",
        "range=",
        "color=",
        "size=",
        "resize=",
        "interpolation=",
        "layout=",
        "0.485,0.456,0.406",
    ):
        assert word in str(caught.value)


HUGGING_FACE_VIT = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor", "resample": 2, "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 192},
}  # fmt: skip
HUGGING_FACE_CROP = {
    "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, "resample": 3,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_flip_channel_order": True,
}  # fmt: skip


def test_published_configurations_are_read(tmp_path):
    def read(fields) -> Preprocess:
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(fields))
        return parse_preprocess(str(path))

    vit = read(HUGGING_FACE_VIT)
    assert (vit.mean, vit.std, vit.height_px, vit.width_px) == ((0.5,) * 3, (0.5,) * 3, 224, 192)
    assert (vit.resize, vit.interpolation, vit.remarks) == ("stretch", "bilinear", ())
    assert vit.scale == pytest.approx(1 / 255)
    crop = read(HUGGING_FACE_CROP)
    assert (crop.color, crop.resize, crop.interpolation, crop.height_px) == ("bgr", "crop", "bicubic", 224)
    assert "256" in crop.remarks[0]
    timm = read(
        {
            "pretrained_cfg": {
                "input_size": [3, 288, 320],
                "mean": [0.5] * 3,
                "std": [0.25] * 3,
                "interpolation": "bicubic",
                "crop_pct": 0.95,
            }
        }
    )
    assert (timm.height_px, timm.width_px, timm.std, timm.resize) == (288, 320, (0.25,) * 3, "crop")
    assert "95.0%" in timm.remarks[0]
    own = read({"mean": [104, 117, 124], "std": 1, "range": 255, "color": "bgr", "size": [240, 320], "resize": "stretch"})
    assert own == Preprocess(1.0, (104.0, 117.0, 124.0), (1.0,), "bgr", 240, 320, "stretch")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[1]", "JSON object"),
        ('{"means": 1}', "'means'"),
        ('{"scale": 1, "range": 1}', "found both"),
        ('{"mean": "a"}', "another form"),
        ('{"do_rescale": true, "rescale_offset": true}', "rescale_offset"),
        ('{"image_mean": [0.5], "image_std": [0.5], "resample": 5}', "resample"),
    ],
)
def test_a_file_that_is_no_preprocessing_is_refused_by_name(tmp_path, text, says):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises((DataError, UsageError), match=says) as caught:
        parse_preprocess(str(path))
    assert "spec.json" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\nsea dog\n"),
        ("labels.txt", "\ufeffcat\r\nsea dog\r\n\r\n"),
        ("labels.json", '["cat", "sea dog"]'),
        ("labels.json", '{"1": "sea dog", "0": "cat"}'),
        ("labels.json", '{"cat": 0, "sea dog": 1}'),
        ("labels.json", '{"0": ["cat"], "1": ["sea", "dog"]}'),
        ("config.json", '{"id2label": {"0": "cat", "1": "sea dog"}}'),
        ("labels.txt", "{0: 'cat',\n 1: 'sea dog'}"),
        ("labels.csv", "index,name\n1,sea dog\n0,cat\n"),
        ("labels.csv", '0,cat\n1,"sea dog"\n'),
    ],
)
def test_class_names_in_every_form(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_labels(path) == ("cat", "sea dog")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("labels.txt", "cat\n\ndog\n", "line 2.*empty"),
        ("labels.txt", "cat\ndog\ncat\n", "line 3.*'cat' again after line 1"),
        ("labels.txt", "cat\n", "at least two"),
        ("labels.txt", "", "at least two"),
        ("labels.csv", "0,cat\n2,dog\n", "none for 1"),
        ("labels.csv", "0,cat\n0,dog\n", "line 2.*0 again after line 1"),
        ("labels.csv", "0,cat\nx,dog\n", "line 2.*'x,dog'"),
        ("labels.json", '{"0": "cat", "0": "dog"}', "'0' again"),
        ("labels.json", '{"0": "cat", "1": 2.5}', "as text"),
        ("labels.json", '{"0": "cat",', "line 1"),
        ("labels.json", '{"a": "b"}', "keys like 'a'"),
        ("labels.json", '{"cat": 0, "dog": 0}', "0 for 'cat' and 'dog'"),
    ],
)
def test_wrong_class_names_are_refused_with_their_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_labels(path)


def test_class_names_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\nbar\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_labels(tmp_path / "latin.txt")


SPEC = ImageSpec(height_px=4, width_px=6, channels=3, resize="stretch")
NAMES = ("n01 cat, tabby", "n02 dog")


def write_images(folder, n: int, value: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        Image.new("RGB", (12, 8), (value, i, 0)).save(folder / f"{i}.png")


@pytest.mark.parametrize("folders", [("n01", "n02"), ("0", "1"), ("n01 cat, tabby", "n02 dog")])
def test_a_folder_a_class(tmp_path, folders):
    for value, folder in enumerate(folders):
        write_images(tmp_path / folder, 2, value * 100)
    (tmp_path / ".cache").mkdir()
    found = load_samples(tmp_path, SPEC, NAMES)
    assert found.images.shape == (4, 4, 6, 3)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.images[:, 0, 0, 0].tolist() == [0, 0, 100, 100]


def test_images_without_classes(tmp_path):
    write_images(tmp_path, 3, 7)
    assert load_samples(tmp_path, SPEC, NAMES).labels.tolist() == [UNLABELLED] * 3


def test_arrays_of_pixels(tmp_path):
    pixels = np.zeros((2, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=pixels, label=np.array([1, 0]))
    np.savez(tmp_path / "b.npz", image=pixels)
    assert load_samples(tmp_path / "a.npz", SPEC, NAMES).labels.tolist() == [1, 0]
    assert load_samples(tmp_path / "b.npz", SPEC, NAMES).labels.tolist() == [UNLABELLED] * 2


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"pixels": np.zeros(1)}, "the array image"),
        ({"image": np.zeros((2, 4, 6, 3))}, "uint8"),
        ({"image": np.zeros((2, 6, 4, 3), np.uint8)}, r"\(2, 6, 4, 3\)"),
        ({"image": np.zeros((2, 4, 6, 3), np.uint8), "label": np.array([0, 2])}, "found 0 to 2"),
        ({"image": np.zeros((2, 4, 6, 3), np.uint8), "label": np.array([0.0, 1.0])}, "whole numbers"),
        ({"image": np.array([None])}, "cannot be read"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=says):
        load_samples(tmp_path / "a.npz", SPEC, NAMES)


def test_samples_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing there"):
        load_samples(tmp_path / "none", SPEC, NAMES)
    with pytest.raises(DataError, match="found none"):
        load_samples(tmp_path, SPEC, NAMES)
    write_images(tmp_path / "cat", 1, 0)
    write_images(tmp_path / "n02", 1, 0)
    with pytest.raises(DataError, match=r"'n01 cat, tabby'.*found 'cat' among 2 sub-folders, and none for .n01 cat, tabby"):
        load_samples(tmp_path, SPEC, NAMES)
    Image.new("RGB", (3, 3)).save(tmp_path / "beside.png")
    with pytest.raises(DataError, match="found both"):
        load_samples(tmp_path, SPEC, NAMES)


def test_an_unreadable_image_is_named(tmp_path):
    write_images(tmp_path, 1, 0)
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(ImageError, match=r"notes\.txt"):
        load_samples(tmp_path, SPEC, NAMES)


def test_two_folders_for_one_class_are_refused(tmp_path):
    write_images(tmp_path / "n01", 1, 0)
    write_images(tmp_path / "n01 cat, tabby", 1, 0)
    with pytest.raises(DataError, match="for the same class"):
        load_samples(tmp_path, SPEC, NAMES)
