"""The teacher's answers on disk: found again, refused when stale, whole after any accident."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from lightning_kd.fingerprints import content_keys
from lightning_kd.teacher_cache import TeacherCache
from tests.kill import ROOT

FINGERPRINT = {"teacher": "aaa", "text": "bbb", "tokenizer": "ccc"}


def rows(*idx: int) -> dict[str, torch.Tensor]:
    return {"idx": torch.tensor(idx)}


def answers(*idx: int) -> torch.Tensor:
    return torch.tensor([[i + 0.25, -i] for i in idx])


def found(cache: TeacherCache, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    kept = cache.find(batch)
    assert kept is not None
    return kept


@pytest.fixture
def cache(tmp_path) -> TeacherCache:
    made = TeacherCache(tmp_path / "cache", FINGERPRINT, 6)
    made.keep(rows(4, 1), answers(4, 1))
    return made


def test_answers_are_found_in_any_order_and_none_unless_all_are_there(cache) -> None:
    kept = found(cache, rows(1, 4, 1))
    assert torch.equal(kept, answers(1, 4, 1))
    assert kept.dtype == torch.float32
    assert cache.find(rows(1, 0)) is None
    assert not cache.complete
    cache.keep(rows(0, 2, 3, 5), answers(0, 2, 3, 5))
    assert cache.complete


def test_another_run_finds_them_and_the_first_answer_stays(cache) -> None:
    other = TeacherCache(cache.folder, FINGERPRINT, 6)
    assert torch.equal(found(other, rows(4)), answers(4))
    other.keep(rows(4, 5), answers(9, 5))
    assert torch.equal(found(cache, rows(4, 5)), answers(4, 5))


def test_fp32_is_kept_bit_for_bit(tmp_path) -> None:
    logits = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    cache = TeacherCache(tmp_path, FINGERPRINT, 16)
    cache.keep(rows(*range(16)), logits)
    assert torch.equal(found(cache, rows(*range(16))), logits)


def test_a_ragged_axis_is_cut_to_the_batch(tmp_path) -> None:
    cache = TeacherCache(tmp_path, FINGERPRINT, 2, width=5)
    long, short = torch.randn(1, 2, 4), torch.randn(1, 2, 3)
    cache.keep(rows(0), long)
    cache.keep(rows(1), short)
    assert torch.equal(found(cache, {**rows(1), "input_ids": torch.zeros(1, 3)}), short)
    both = found(cache, {**rows(0, 1), "input_ids": torch.zeros(2, 4)})
    assert torch.equal(both[0], long[0])
    assert torch.equal(both[1, :, :3], short[0])
    assert not both[1, :, 3].any()


def test_texts_that_share_an_idx_are_told_apart_by_content(tmp_path) -> None:
    tokens = torch.tensor([[5, 6, 7, 0], [5, 6, 0, 0], [9, 0, 0, 0]])
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), **rows(3, 3, 3)}
    keys = np.unique(content_keys(batch))
    cache = TeacherCache(tmp_path, FINGERPRINT, keys)
    cache.keep(batch, answers(0, 1, 2))
    shorter = {"input_ids": tokens[1:2, :2], "attention_mask": torch.ones(1, 2), **rows(3)}
    assert torch.equal(found(cache, shorter), answers(1))
    unknown = {"input_ids": tokens[:1] + 1, "attention_mask": torch.ones(1, 4), **rows(3)}
    with pytest.raises(ValueError, match="none of them for example 3; the data have changed"):
        cache.find(unknown)


@pytest.mark.parametrize("name", FINGERPRINT)
def test_a_stale_cache_is_refused_and_says_what_changed(name, cache) -> None:
    with pytest.raises(ValueError, match=rf"\({name}: {FINGERPRINT[name]} there, zzz now\)"):
        TeacherCache(cache.folder, {**FINGERPRINT, name: "zzz"}, 6)
    with pytest.raises(ValueError, match="examples: 6 there, 7 now"):
        TeacherCache(cache.folder, FINGERPRINT, 7)


def test_an_example_beyond_the_rows_is_refused(cache) -> None:
    with pytest.raises(ValueError, match="has 6 rows, none of them for example 6"):
        cache.find(rows(0, 6))


def test_answers_of_another_shape_are_refused(cache) -> None:
    with pytest.raises(ValueError, match=r"keeps answers of shape \(2,\), got \(3,\)"):
        cache.keep(rows(0), torch.zeros(1, 3))


@pytest.mark.parametrize("name", ["logits.bin", "sums.bin"])
def test_a_truncated_file_is_refused(name, cache) -> None:
    path = cache.folder / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{name} has \d+ of \d+ bytes: it was cut off; delete"):
        TeacherCache(cache.folder, FINGERPRINT, 6)


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        '{"fingerprint": {}, "rows": 6}',
        '{"fingerprint": [], "rows": 6, "shape": [2]}',
        '{"fingerprint": {}, "rows": "six", "shape": [2]}',
        '{"fingerprint": {}, "rows": 6, "shape": "two"}',
    ],
)
def test_a_damaged_header_is_refused(header, cache) -> None:
    (cache.folder / "header.json").write_text(header)
    with pytest.raises(ValueError, match=rf"header\.json is damaged \(.*\); delete {cache.folder}"):
        TeacherCache(cache.folder, FINGERPRINT, 6)


def test_two_teachers_that_begin_together_in_one_folder_do_not_mix(tmp_path) -> None:
    ours, theirs = (
        TeacherCache(tmp_path, {**FINGERPRINT, "teacher": name}, 6) for name in ("us", "them")
    )
    ours.keep(rows(0), answers(0))
    with pytest.raises(ValueError, match=r"for something else \(teacher: us there, them now\)"):
        theirs.keep(rows(1), answers(5))
    assert torch.equal(found(ours, rows(0)), answers(0))
    assert ours.find(rows(1)) is None


def test_files_of_a_process_that_died_before_its_header_are_no_obstacle(tmp_path) -> None:
    TeacherCache(tmp_path, FINGERPRINT, 9).keep(rows(0), answers(0))
    (tmp_path / "header.json").unlink()
    again = TeacherCache(tmp_path, FINGERPRINT, 6)
    again.keep(rows(1), answers(1))
    assert torch.equal(found(again, rows(1)), answers(1))


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch) -> None:
    def none(*_) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    cache = TeacherCache(tmp_path, FINGERPRINT, 6)
    cache.keep(rows(0), answers(0))
    assert torch.equal(found(TeacherCache(tmp_path, FINGERPRINT, 6), rows(0)), answers(0))
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_row_that_was_lost_is_asked_again(cache) -> None:
    stored = np.memmap(cache.folder / "logits.bin", np.float32, "r+", shape=(6, 2))
    stored[4] = 0
    again = TeacherCache(cache.folder, FINGERPRINT, 6)
    assert again.find(rows(4)) is None
    again.keep(rows(4), answers(4))
    assert torch.equal(found(again, rows(4)), answers(4))


def as_nobody(act: Callable[[], object]) -> str:
    """What a process without root's rights prints; for root, permissions do not count."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            if os.getuid() == 0:
                os.setresuid(65534, 65534, 65534)
            try:
                said = str(act())
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def locked(cache) -> Iterator[TeacherCache]:
    """A cache that nobody may write, in folders that everybody may enter."""
    for folder in (cache.folder, *cache.folder.parents[:-2]):
        folder.chmod(0o755)
    for file in cache.folder.iterdir():
        file.chmod(0o444)
    cache.folder.chmod(0o555)
    yield cache
    cache.folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_serves_what_it_has_and_says_so_else(locked) -> None:
    def ask(*idx: int) -> object:
        cache = TeacherCache(locked.folder, FINGERPRINT, 6)
        if (kept := cache.find(rows(*idx))) is not None:
            return kept.tolist()
        cache.keep(rows(*idx), answers(*idx))
        return None

    assert as_nobody(lambda: ask(4)) == str(answers(4).tolist())
    said = as_nobody(lambda: ask(0))
    assert said.startswith("PermissionError")
    assert "cannot be written and lacks 4 of 6 answers; copy it to a folder of yours" in said


def test_where_no_cache_can_be_made_the_folder_and_the_way_out_are_said(locked) -> None:
    folder = locked.folder / "new"
    said = as_nobody(lambda: TeacherCache(folder, FINGERPRINT, 6).keep(rows(0), answers(0)))
    assert said.startswith("PermissionError")
    assert "no place for 72 bytes of the teacher's answers (Permission denied)" in said
    assert "another --model.teacher_cache, or set it to null" in said
    assert str(folder) in said
    file = locked.folder / "header.json"
    with pytest.raises(OSError, match=r"no place for 72 bytes .*\(File exists\)"):
        TeacherCache(file, FINGERPRINT, 6).keep(rows(0), answers(0))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = TeacherCache(tmp_path / "cache", FINGERPRINT, 6)
    with pytest.raises(OSError, match="no room for 72 bytes of the teacher's answers"):
        cache.keep(rows(0), answers(0))
    assert list((tmp_path / "cache").iterdir()) == []


LIMITED = """
import resource, sys, torch
from pathlib import Path
from lightning_kd.teacher_cache import TeacherCache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    TeacherCache(Path(sys.argv[1]), {}, 10**6).keep({"idx": torch.tensor([0])}, torch.zeros(1, 2))
except OSError as error:
    print(error)
"""


def test_where_the_room_really_is_too_small_it_is_an_error_and_no_crash(tmp_path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED)
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "no room for 12,000,000 bytes" in ended.stdout


def test_processes_that_begin_together_share_one_file(tmp_path) -> None:
    first, second = (TeacherCache(tmp_path, FINGERPRINT, 6) for _ in range(2))
    first.keep(rows(0), answers(0))
    second.keep(rows(1), answers(1))
    for cache in (first, second):
        assert torch.equal(found(cache, rows(0, 1)), answers(0, 1))
    assert not list(tmp_path.glob("*.tmp-*"))


def test_the_header_says_what_the_answers_are_of(cache) -> None:
    header = json.loads((cache.folder / "header.json").read_text())
    assert header == {"fingerprint": FINGERPRINT, "rows": 6, "shape": [2]}
