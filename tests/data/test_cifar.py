"""The data module of images: its sources, splits, normalization, looks and errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from lightning_kd.data import CIFAR, FlipLabels
from lightning_kd.teacher_cache import TeacherCache, TrainingRows
from tests import tiny_data


@pytest.fixture
def digits(tmp_path):
    folder = tiny_data.digits_folder(tmp_path / "digits", train=60)

    def build(**options):
        options = {"data_dir": str(folder), "batch_size": 8, "holdout_fraction": 0.25, **options}
        return CIFAR("digits", **options)

    return build


def all_of(loaders):
    loaders = loaders if isinstance(loaders, list) else [loaders]
    batches = [batch for loader in loaders for batch in loader]
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    order = whole["idx"].argsort()
    return {name: values[order] for name, values in whole.items()}


def test_published_pickles_are_read_in_order_from_either_folder(tmp_path) -> None:
    folder = tiny_data.cifar10_folder(tmp_path / "cifar-10-batches-py")
    names = [name.encode() for name in CIFAR.tasks["cifar10"].labels]  # type: ignore[attr-defined]
    meta = tiny_data.pickled({b"label_names": names})
    (folder / "batches.meta").write_bytes(meta)
    splits = {place: CIFAR("cifar10", str(place)).read() for place in (tmp_path, folder)}
    assert splits[tmp_path]["train"][:] == splits[folder]["train"][:]
    train, test = splits[folder]["train"], splits[folder]["test"]
    pixels, labels = tiny_data.cifar_images(10, first=2)
    assert train["label"][20:30] == labels.tolist()
    assert train["image"][25] == pixels[5].tobytes()
    assert (len(train), len(test)) == (50, 10)
    assert test["idx"][:] == list(range(10))


def test_cifar100_has_its_fine_labels(tmp_path) -> None:
    pixels, _ = tiny_data.cifar_images(4)
    for name, labels in (("train", [99, 0, 5, 7]), ("test", [1, 2, 3, 4])):
        content = tiny_data.python_2_batch(pixels, labels, "fine_labels")
        (tmp_path / name).write_bytes(content)
    labels = CIFAR.tasks["cifar100"].labels  # type: ignore[attr-defined]
    meta = tiny_data.pickled({b"fine_label_names": [name.encode() for name in labels]})
    (tmp_path / "meta").write_bytes(meta)
    assert CIFAR("cifar100", str(tmp_path)).read()["train"]["label"][:] == [99, 0, 5, 7]
    meta = tiny_data.pickled({b"fine_label_names": [b"worm"]})
    (tmp_path / "meta").write_bytes(meta)
    with pytest.raises(ValueError, match=r"meta has the classes worm, expected apple, .* so on"):
        CIFAR("cifar100", str(tmp_path)).read()


def test_a_missing_batch_file_is_named(tmp_path) -> None:
    folder = tiny_data.cifar10_folder(tmp_path)
    (folder / "batches.meta").write_bytes(tiny_data.pickled({}))
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*/data_batch_3; it needs all"):
        CIFAR("cifar10", str(tmp_path)).read()


@pytest.mark.parametrize(
    ("task", "names", "wanted"),
    [("cifar10", ("img", "label"), 10), ("cifar100", ("img", "fine_label"), 100)],
)
def test_the_hub_gives_the_same(task, names, wanted, monkeypatch) -> None:
    pixels, _ = tiny_data.cifar_images(3)
    asked = []

    def load(name):
        asked.append(name)
        rows = {names[0]: list(pixels.transpose(0, 2, 3, 1)), names[1]: [0, wanted - 1, 1]}
        rows["coarse_label"] = [0, 0, 0]
        split = Dataset.from_dict(rows, Features({
            names[0]: Image(), names[1]: Value("int64"), "coarse_label": Value("int64"),
        }))  # fmt: skip
        return {"train": split, "test": split}

    monkeypatch.setattr("datasets.load_dataset", load)
    found = CIFAR(task).read()
    assert asked == [f"uoft-cs/{task}"]
    assert found["test"]["image"][:] == [image.tobytes() for image in pixels]
    assert found["train"]["label"][:] == [0, wanted - 1, 1]


def test_without_the_hub_the_way_out_is_named(monkeypatch) -> None:
    def fail(name):
        raise OSError("no route\nand more")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(ConnectionError, match=r"'uoft-cs/cifar10' .*\(no route\).*--data.data_dir"):
        CIFAR("cifar10").read()
    with pytest.raises(ValueError, match=r"digits is not on the Hub; `lightning-kd assets digits`"):
        CIFAR("digits").read()


def test_validation_is_a_holdout_and_test_the_published_one(digits) -> None:
    data = digits()
    train, dev = all_of(data.train_dataloader()), all_of(data.val_dataloader())
    test = all_of(data.test_dataloader())
    assert sorted(train["idx"].tolist() + dev["idx"].tolist()) == list(range(60))
    assert 5 <= len(dev["idx"]) <= 25
    assert test["idx"].tolist() == all_of(data.predict_dataloader())["idx"].tolist()
    assert len(test["idx"]) == 12
    assert data.has_test
    assert (data.eval_splits("validate"), data.eval_splits("test")) == (["validation"], ["test"])


def test_equal_images_stay_together(tmp_path) -> None:
    folder = tiny_data.digits_folder(tmp_path)
    with np.load(folder / "digits_train.npz") as archive:
        images, labels = (np.concatenate([archive[name]] * 2) for name in ("images", "labels"))
    np.savez(folder / "digits_train.npz", images=images, labels=labels)
    data = CIFAR("digits", str(folder), holdout_fraction=0.5)
    held = set(all_of(data.val_dataloader())["idx"].tolist())
    assert 0 < len(held) < 80
    assert {(i + 40) % 80 for i in held} == held


def test_pixels_are_normalized_by_all_published_training_images(digits) -> None:
    """Whatever the holdout, the limit and the noise."""
    data = digits()
    parts = [all_of(data.train_dataloader()), all_of(data.val_dataloader())]
    pixels = torch.cat([part["pixel_values"] for part in parts])
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-5)
    assert float(pixels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    small = digits(limit_examples=5, train_transforms=[FlipLabels(0.5)], holdout_fraction=0.5)
    small.setup()
    data.setup()
    assert torch.equal(small._mean, data._mean)
    test = all_of(small.test_dataloader())
    kept = torch.isin(all_of(data.test_dataloader())["idx"], test["idx"])
    whole = all_of(data.test_dataloader())["pixel_values"]
    assert torch.equal(test["pixel_values"], whole[kept])


def test_flipped_labels_are_those_of_the_example_and_counted(digits) -> None:
    noisy, clean = digits(train_transforms=[FlipLabels(0.4)]), digits()
    found, labels = all_of(noisy.train_dataloader()), all_of(clean.train_dataloader())
    noise = FlipLabels(0.4)
    noise.prepare(clean.spec)
    assert torch.equal(found["labels"], noise.flip(labels["labels"], labels["idx"]))
    changed = int((found["labels"] != labels["labels"]).sum())
    assert noisy.notes["labels_changed"] == changed > 0
    assert torch.equal(found["pixel_values"], labels["pixel_values"])
    dev = [all_of(data.val_dataloader())["labels"] for data in (noisy, clean)]
    assert torch.equal(*dev)


def test_only_training_images_are_augmented_and_digits_are_not_mirrored(digits) -> None:
    data, plain = digits(augment=True), digits()
    data.setup()
    augmentation = data._splits("train")["train"].augmentation
    assert (augmentation.padding, augmentation.flip) == (1, False)
    loader = data.train_dataloader()
    looks = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        looks.append(all_of(loader)["pixel_values"])
    assert not torch.equal(*looks)
    for mine, theirs in ((data.val_dataloader(), plain.val_dataloader()),
                         (data.test_dataloader(), plain.test_dataloader())):  # fmt: skip
        assert torch.equal(all_of(mine)["pixel_values"], all_of(theirs)["pixel_values"])


def test_cifar_is_cropped_by_four_and_mirrored(tmp_path) -> None:
    folder = tiny_data.cifar10_folder(tmp_path)
    (folder / "batches.meta").write_bytes(tiny_data.pickled({}))
    data = CIFAR("cifar10", str(folder), augment=True, seed=5)
    augmentation = data._splits("train")["train"].augmentation
    assert (augmentation.padding, augmentation.flip, augmentation.seed) == (4, True, 5)


def test_a_teacher_cache_keeps_an_answer_for_each_view(digits, tmp_path) -> None:
    data = digits(augment=True, augment_views=2)
    assert not data.augments
    largest = int(data._splits("train")["train"].idx.max())
    assert data.train_keys == 2 * (largest + 1)
    cache = TeacherCache(tmp_path / "cache", data.train_identity, data.train_keys)
    loader = data.train_dataloader()

    def answers(batch):
        return batch["pixel_values"].flatten(1).mean(1, keepdim=True)

    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            found = cache.find(batch)
            assert (found is None) == (epoch < 2)
            if found is None:
                cache.keep(batch, answers(batch))
            else:
                assert torch.equal(found, answers(batch))


def test_the_identity_of_training_images_says_what_changes_a_teachers_answer(digits) -> None:
    same = digits().train_identity
    assert digits(train_transforms=[FlipLabels(0.5)]).train_identity == same  # labels are no input
    for options in ({"seed": 1}, {"limit_examples": 9}, {"augment": True, "augment_views": 2}):
        assert digits(**options).train_identity != same
    views = [digits(augment=True, augment_views=k).train_identity for k in (2, 3)]
    assert views[0] != views[1]
    assert digits(augment=True).augments
    assert isinstance(digits(), TrainingRows)
    assert digits().train_keys == 1 + int(digits()._splits("train")["train"].idx.max())


def test_predictions_are_names_in_the_published_order(digits, tmp_path) -> None:
    data = digits()
    assert data.submissions == ["digits.tsv"]
    data.write_predictions(tmp_path / "out.tsv", torch.tensor([2, 0]), torch.tensor([7, 3]))
    assert (tmp_path / "out.tsv").read_text() == "index\tprediction\n0\t3\n2\t7\n"


def test_an_export_is_told_the_normalization(digits, tmp_path) -> None:
    data = digits()
    data.save_processing(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    raw = np.load(data.data_dir / "digits_train.npz")["images"]
    assert settings["image_mean"] == pytest.approx([raw.mean() / 255])
    assert settings["image_std"] == pytest.approx([raw.std() / 255])
    assert settings["rescale_factor"] == 1 / 255


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout_fraction": 0.0}, "digits has no published validation set; give --data.holdout"),
        ({"augment_views": -1, "augment": True}, "augment_views must be at least 0, got -1"),
        ({"augment_views": 2}, "augment_views=2 has no effect without --data.augment true"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_named(options, message, digits) -> None:
    with pytest.raises(ValueError, match=message):
        digits(**options)


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no task 'mnist'; choose from cifar10, cifar100, digits"):
        CIFAR("mnist")


def test_folders_without_or_with_too_many_files_are_named(digits, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no \*train\*.npz; `lightning-kd assets dig"):
        CIFAR("digits", str(tmp_path / "none")).setup()
    with pytest.raises(FileNotFoundError, match=r"neither cifar-10-batches-py nor a \*train\*"):
        CIFAR("cifar10", str(tmp_path / "none")).setup()
    data = digits()
    shutil.copy(data.data_dir / "digits_train.npz", data.data_dir / "more_train.npz")
    with pytest.raises(ValueError, match=r"several \*train\*.npz \(digits_train.npz, more_train"):
        data.setup()


def test_images_of_several_sizes_are_refused(digits) -> None:
    data = digits()
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)
    np.savez(data.data_dir / "digits_test.npz", images=images, labels=labels)
    with pytest.raises(ValueError, match="images of several sizes"):
        data.setup()
