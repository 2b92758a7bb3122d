"""Python 2's pickles and ``.npz`` files: read as published, and refused when they are not."""

import pickle
import re

import numpy as np
import pytest

from lightning_kd.data.image_files import check_names, read_names, read_npz, read_pickles
from tests import tiny_data


def batch_file(folder, **changes):
    pixels, labels = tiny_data.cifar_images(4)
    content = {"data": pixels.reshape(4, -1), "labels": labels.tolist(), **changes}
    path = folder / "data_batch_1"
    path.write_bytes(pickle.dumps({k.encode(): v for k, v in content.items() if v is not None}))
    return path


def test_a_pickle_of_python_2_is_read_as_published(tmp_path) -> None:
    pixels, labels = tiny_data.cifar_images(5)
    path = tmp_path / "data_batch_1"
    path.write_bytes(tiny_data.python_2_batch(pixels, labels.tolist()))
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in path.read_bytes()
    found = read_pickles([path, path], "labels", 10)
    assert np.array_equal(found.pixels, np.concatenate([pixels, pixels]))
    assert np.array_equal(found.labels, np.concatenate([labels, labels]))
    # all red values of an image come first, row by row
    first = path.read_bytes().index(pixels[0].tobytes())
    assert path.read_bytes()[first + 33] == found.pixels[0, 0, 1, 1]


def test_todays_pickles_are_read_too(tmp_path) -> None:
    pixels, labels = tiny_data.cifar_images(4)
    found = read_pickles([batch_file(tmp_path)], "labels", 10)
    assert np.array_equal(found.pixels, pixels)
    assert np.array_equal(found.labels, labels)


class _Harmful:
    def __reduce__(self):
        return eval, ("open('harm', 'w').close()",)


def test_nothing_in_a_pickle_is_called(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = batch_file(tmp_path, labels=_Harmful())
    with pytest.raises(
        ValueError, match=r"data_batch_1 is no CIFAR .*builtins\.eval, which is not"
    ):
        read_pickles([path], "labels", 10)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kept", [0, 1, 10, 5000, -1])
def test_a_truncated_pickle_is_named(kept, tmp_path) -> None:
    path = batch_file(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is no CIFAR batch file"):
        read_pickles([path], "labels", 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "has no 'labels', only data"),
        ({"data": np.zeros((4, 7), np.uint8)}, r"bytes \[n, 3072\], found uint8 \[4, 7\]"),
        ({"data": [1, 2]}, r"bytes \[n, 3072\], found list"),
        ({"labels": [0, 1, 10, 3]}, "image 2: label 10 is not in 0..9"),
        ({"labels": [0, -1, 2, 3]}, "image 1: label -1 is not in 0..9"),
        ({"labels": [0, 1]}, r"4 images need as many whole numbers as labels, found int64 \[2\]"),
        ({"labels": [0.5] * 4}, r"4 images need as many whole numbers"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": np.zeros(0, np.int64)}, "no images"),
    ],
    ids=str,
)
def test_a_malformed_pickle_is_named(changes, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"data_batch_1.*{message}"):
        read_pickles([batch_file(tmp_path, **changes)], "labels", 10)


def test_a_missing_file_and_another_thing_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*data_batch_9; it needs all"):
        read_pickles([tmp_path / "data_batch_9"], "labels", 10)
    (tmp_path / "list").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="list holds no dictionary but list"):
        read_pickles([tmp_path / "list"], "labels", 10)


def npz_file(folder, **changes):
    content = {"images": np.zeros((3, 4, 5, 1), np.uint8), "labels": np.arange(3), **changes}
    np.savez(folder / "train.npz", **{k: v for k, v in content.items() if v is not None})
    return folder / "train.npz"


def test_an_npz_has_its_channels_last(tmp_path) -> None:
    images = np.arange(60, dtype=np.uint8).reshape(3, 4, 5, 1)
    found = read_npz(npz_file(tmp_path, images=images), 1, 10)
    assert found.pixels.shape == (3, 1, 4, 5)
    assert found.pixels[1, 0, 2, 3] == images[1, 2, 3, 0]
    assert found.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "has no 'labels'"),
        ({"images": np.zeros((3, 4, 5, 3), np.uint8)}, r"h, w, 1\], found uint8 \[3, 4, 5, 3\]"),
        ({"images": np.zeros((3, 4, 5, 1))}, r"h, w, 1\], found float64"),
        ({"labels": np.array([0, 1, 12])}, "image 2: label 12 is not in 0..9"),
        ({"labels": np.array([{}, {}, {}])}, r"is no whole .npz file \(Object arrays"),
    ],
    ids=str,
)
def test_a_malformed_npz_is_named(changes, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"train.npz.*{message}"):
        read_npz(npz_file(tmp_path, **changes), 1, 10)


@pytest.mark.parametrize("kept", [0, 10, 300, -30])
def test_a_truncated_npz_is_named(kept, tmp_path) -> None:
    path = npz_file(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"train.npz is no whole .npz file"):
        read_npz(path, 1, 10)


def test_names_of_classes_come_from_meta_files_and_npz(tmp_path) -> None:
    (tmp_path / "meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}))
    assert read_names(tmp_path / "meta", "label_names") == ["cat", "dog"]
    path = npz_file(tmp_path, class_names=np.array(["cat", "dog"]))
    assert read_names(path, "class_names") == ["cat", "dog"]
    assert read_names(npz_file(tmp_path), "class_names") == []


def test_classes_in_another_order_are_refused(tmp_path) -> None:
    check_names(tmp_path, [], ["cat", "dog"])
    check_names(tmp_path, ["cat", "dog"], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"has the classes dog, cat, expected cat, dog, in this"):
        check_names(tmp_path, ["dog", "cat"], ["cat", "dog"])
