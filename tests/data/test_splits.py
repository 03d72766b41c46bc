import csv
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from skin_jax.base.errors import UserError
from skin_jax.data import splits
from skin_jax.data.classes import HAM10000, UNLABELLED, Classes
from skin_jax.data.examples import Record

FRACTIONS = (0.7, 0.1, 0.2)


def record(image_id, label, lesion_id, official="train") -> Record:
    return Record(image_id, label, lesion_id, math.nan, "", "", "", official)


def many(seed: int, num_lesions: int = 300) -> list[Record]:
    """Lesions of one to four images, classes of very different sizes, some labels contradictory."""
    rng = np.random.default_rng(seed)
    records = []
    for lesion in range(num_lesions):
        label = int(rng.choice(7, p=[0.04, 0.05, 0.1, 0.03, 0.1, 0.65, 0.03]))
        for _ in range(rng.integers(1, 5)):
            own = (label + 1) % 7 if rng.random() < 0.02 else label
            records.append(record(f"I{len(records):05}", own, f"L{lesion}"))
    return records


def draw(records, split="lesion", fractions=FRACTIONS, split_seed=0, **options):
    options = {"fold": None} | options
    return splits.draw(records, split=split, fractions=fractions, split_seed=split_seed, **options)


def sides_of_lesions(records, assignment) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = {}
    for r, side in zip(records, assignment, strict=True):
        sides.setdefault(r.lesion_id, set()).add(str(side))
    return sides


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fold", [None, 0, 3])
def test_no_lesion_crosses_splits(seed, fold):
    records = many(seed)
    assignment = draw(records, split_seed=seed, fold=fold)
    assert all(len(sides) == 1 for sides in sides_of_lesions(records, assignment).values())
    assert set(assignment) == {"train", "val", "test"}
    assert splits.shared_lesions(records, assignment) == 0


@pytest.mark.parametrize("seed", range(5))
def test_every_lesion_is_tested_in_exactly_one_fold(seed):
    records = many(seed)
    tested = Counter()
    vals = set()
    for fold in range(splits.NUM_FOLDS):
        assignment = draw(records, split_seed=seed, fold=fold)
        lesions = {r.lesion_id for r, s in zip(records, assignment, strict=True) if s == "test"}
        assert len(lesions) == 60
        tested.update(lesions)
        vals.add(frozenset(np.flatnonzero(assignment == "val")))
        sides = Counter(min(s) for s in sides_of_lesions(records, assignment).values())
        assert sides["val"] == pytest.approx(30, abs=4)
    assert tested == Counter({r.lesion_id for r in records})
    assert len(vals) == splits.NUM_FOLDS


def test_classes_are_apportioned_exactly():
    # One image a lesion: 3, 10, 25 and 100 lesions of four classes.
    sizes = {0: 3, 1: 10, 2: 25, 3: 100}
    records = [record(f"{c}-{i}", c, f"{c}-{i}") for c, n in sizes.items() for i in range(n)]
    assignment = draw(records)
    counts = Counter((r.label, str(s)) for r, s in zip(records, assignment, strict=True))
    expected = {0: (1, 1, 1), 1: (7, 1, 2), 2: (18, 2, 5), 3: (70, 10, 20)}
    for label, wanted in expected.items():
        assert tuple(counts[label, side] for side in splits.SPLITS) == wanted


def test_contradictory_labels_count_for_the_majority():
    records = [record(f"{i}", 5, f"{i}") for i in range(10)]
    records += [record("a", 3, "x"), record("b", 5, "x"), record("c", 5, "x")]
    assignment = draw(records)
    counts = Counter(str(next(iter(s))) for s in sides_of_lesions(records, assignment).values())
    assert counts == {"train": 8, "val": 1, "test": 2}  # of 11 lesions of one class


def test_split_is_a_function_of_records_and_seed_not_of_their_order():
    records = many(1)
    assignment = dict(zip((r.image_id for r in records), draw(records), strict=True))
    for shuffle in range(3):
        order = np.random.default_rng(shuffle).permutation(len(records))
        shuffled = [records[i] for i in order]
        again = dict(zip((r.image_id for r in shuffled), draw(shuffled), strict=True))
        assert again == assignment
    assert (draw(records, split_seed=1) != draw(records)).any()


def test_split_does_not_change_between_versions():
    # Runs of different months are compared: this literal may not change.
    records = [record(f"ISIC_{i:07}", i % 2, f"HAM_{i // 2}") for i in range(20)]
    code = "".join(str(side)[1] for side in draw(records))  # tRain, vAl, tEst
    assert code == "rraarreerrrrrreerrrr"


def test_no_test_fraction():
    assert set(draw(many(0), fractions=(0.9, 0.1, 0.0))) == {"train", "val"}
    assert set(draw(many(0), fractions=(0.8, 0.0, 0.2))) == {"train", "test"}


def test_few_lesions_of_each_class_and_all_others_are_test():
    records = [record(f"{i:04}", i % 5, f"L{i % 40}") for i in range(80)]
    assignment = draw(records, counts=(3, 1))
    sides = sides_of_lesions(records, assignment)
    assert all(len(own) == 1 for own in sides.values())
    classes = {r.lesion_id: r.label for r in records}
    found = Counter((classes[lesion], side) for lesion, (side,) in sides.items())
    for label in set(classes.values()):
        assert (found[label, "train"], found[label, "val"]) == (3, 1)
        assert found[label, "test"] == sum(own == label for own in classes.values()) - 4
    assert (draw(records, counts=(3, 1), split_seed=1) != assignment).any()
    with pytest.raises(UserError, match=r"split_counts is \(300, 1\), but the rarest class has"):
        draw(records, counts=(300, 1))


def test_paper_split_is_by_image_and_counts_shared_lesions():
    records = [record(f"{i:04}", i % 2, f"L{i // 4}") for i in range(1000)]
    assignment = draw(records, "paper")
    assert Counter(assignment.tolist()) == {"train": 720, "val": 80, "test": 200}
    train = {r.lesion_id for r, s in zip(records, assignment, strict=True) if s == "train"}
    shared = [r for r, s in zip(records, assignment, strict=True) if s == "test"]
    expected = sum(r.lesion_id in train for r in shared)
    assert splits.shared_lesions(records, assignment) == expected > 100


def test_official_split_keeps_the_folders():
    records = [record(f"t{i}", 5, f"L{i // 2}") for i in range(40)]
    records += [record(f"v{i}", 5, f"v{i}", "val") for i in range(3)]
    records += [record(f"e{i}", 5, f"e{i}", "test") for i in range(4)]
    assert draw(records, "official").tolist() == ["train"] * 40 + ["val"] * 3 + ["test"] * 4


def test_official_split_draws_missing_val_from_train_by_lesion():
    records = [record(f"t{i}", 5, f"L{i // 2}") for i in range(80)]
    records += [record(f"e{i}", 5, f"e{i}", "test") for i in range(4)]
    assignment = draw(records, "official")
    assert Counter(assignment.tolist()) == {"train": 70, "val": 10, "test": 4}
    assert (assignment[80:] == "test").all()
    assert all(len(s) == 1 for s in sides_of_lesions(records, assignment).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fractions": (0.7, 0.1, 0.1)}, ["config.data.split_fractions", "0.9", "not to 1"]),
        ({"fractions": (1.2, -0.2, 0.0)}, ["config.data.split_fractions", "-0.2"]),
        ({"fractions": (0.8, 0.2)}, ["config.data.split_fractions", "three"]),
        ({"fractions": (0.0, 0.5, 0.5)}, ["config.data.split_fractions", "(train) above 0"]),
        ({"fractions": (math.nan, 0.5, 0.5)}, ["config.data.split_fractions", "nan"]),
        ({"fold": 0, "split": "paper"}, ["config.data.fold", "'paper'"]),
        ({"fold": 0, "split": "official"}, ["config.data.fold", "'official'"]),
        ({"counts": (0, 5)}, ["config.data.split_counts is (0, 5)"]),
        ({"counts": (5,)}, ["config.data.split_counts is (5,)"]),
        ({"counts": (5, 5), "fold": 1}, ["config.data.split_counts goes with", "data.fold"]),
        ({"counts": (5, 5), "split": "paper"}, ["config.data.split_counts goes with"]),
        ({"fold": 0, "fractions": (0.1, 0.9, 0.0)}, ["config.data.split_fractions", "fold"]),
    ],
)
def test_bad_values_name_their_key(options, words):
    with pytest.raises(UserError) as caught:
        draw(many(0, 20), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_written_splits_are_read_back(tmp_path):
    records = many(2)
    assignment = draw(records)
    path = tmp_path / "splits.csv"
    splits.write(path, records, assignment, HAM10000)
    with path.open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "lesion_id", "label", "split"]
    assert len(rows) == 1 + len(records)
    assert rows[1][:2] == ["I00000", "L0"]
    assert rows[1][2] in ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert [p.name for p in tmp_path.iterdir()] == ["splits.csv"]
    np.testing.assert_array_equal(splits.read(path, records, HAM10000)[0], assignment)
    np.testing.assert_array_equal(splits.read(path, records[::-1], HAM10000)[0], assignment[::-1])


def test_read_refuses_other_records(tmp_path):
    records = many(3, 20)
    path = tmp_path / "splits.csv"
    splits.write(path, records, draw(records), HAM10000)
    other = [*records[1:], record("new", 0, "new")]
    with pytest.raises(UserError, match=r"does not match the data: 1 of .*1 of its rows"):
        splits.read(path, other, HAM10000)
    with pytest.raises(UserError, match="does not match"):
        splits.read(path, records[1:], HAM10000)


def test_read_refuses_damaged_files(tmp_path):
    path = tmp_path / "splits.csv"
    records = [record("a", 0, "L")]
    with pytest.raises(UserError, match="cannot read"):
        splits.read(path, records, HAM10000)
    path.write_text("image,split\na,train\n")
    with pytest.raises(UserError, match="lesion_id"):
        splits.read(path, records, HAM10000)
    path.write_text("image,lesion_id,label,split\na,L,akiec,trian\n")
    with pytest.raises(UserError, match="trian"):
        splits.read(path, records, HAM10000)
    path.write_text("image,lesion_id,label,split\na,L,akiec,train\na,L,akiec,test\n")
    with pytest.raises(UserError, match="does not match"):
        splits.read(path, records, HAM10000)


def test_odd_ids_and_names_of_classes_survive(tmp_path):
    path = tmp_path / "splits.csv"
    odd = Classes.of(["with, comma", 'quote "', "été 皮"])
    names = [" a", "b,c", 'd"e', "f;g", "h'i", "été"]
    records = [record(name, k % 3, f"{name} lesion") for k, name in enumerate(names)]
    sides = np.array(["train", "val"] * 3)
    splits.write(path, records, sides, odd)
    np.testing.assert_array_equal(splits.read(path, records, odd)[0], sides)
    assert splits.class_counts(path, "train", odd).tolist() == [1, 1, 1]
    assert splits.members(path, "train") == splits.members_of(records, sides, "train", odd)
    assert splits.lesion_ids(path) == {name: f"{name} lesion" for name in names}


def test_counts_of_other_classes_are_refused(tmp_path):
    path = tmp_path / "splits.csv"
    splits.write(path, [record("a", 5, "L")], np.array(["train"]), HAM10000)
    assert splits.class_counts(path, "train", HAM10000).tolist() == [0, 0, 0, 0, 0, 1, 0]
    with pytest.raises(UserError, match=r"has the class 'nv', which is none of the run's \(a, b\)"):
        splits.class_counts(path, "train", Classes.of(["a", "b"]))


def test_splits_of_the_code_of_before_are_read(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_bytes(b"image,lesion_id,label,split\nISIC_1,HAM_1,nv,train\nISIC_2,HAM_2,df,test\n")
    records = [record("ISIC_2", 3, "HAM_2"), record("ISIC_1", 5, "HAM_1")]
    assert splits.read(path, records, HAM10000)[0].tolist() == ["test", "train"]


def lesions(records, mask) -> set[str]:
    return {r.lesion_id for r, own in zip(records, mask, strict=True) if own}


@pytest.mark.parametrize("seed", range(3))
def test_known_labels_are_of_whole_lesions_and_part_of_those_of_a_larger_fraction(seed):
    records = many(seed)
    assignment = draw(records)
    train = lesions(records, assignment == "train")
    before: set[str] = set()
    for fraction in (0.01, 0.05, 0.1, 0.25, 0.5, 1.0):
        hidden = splits.hidden_labels(records, assignment, fraction, seed)
        assert set(assignment[hidden]) <= {"train"}
        known = train - lesions(records, hidden)
        assert not known & lesions(records, hidden)
        assert before <= known
        before = known
        sizes, kept = Counter(), Counter()
        for lesion in train:
            own = [r.label for r in records if r.lesion_id == lesion]
            label = min(own, key=lambda each: (-own.count(each), each))
            sizes[label] += 1
            kept[label] += lesion in known
        assert kept == {label: max(1, round(fraction * n)) for label, n in sizes.items()}
    assert before == train


def test_another_seed_hides_other_labels_and_order_does_not_matter():
    records = many(0)
    assignment = draw(records)
    hidden = splits.hidden_labels(records, assignment, 0.3, 0)
    assert (hidden != splits.hidden_labels(records, assignment, 0.3, 1)).any()
    backwards = splits.hidden_labels(records[::-1], assignment[::-1], 0.3, 0)
    np.testing.assert_array_equal(backwards[::-1], hidden)


def test_hidden_labels_are_not_in_the_file_and_are_read_back(tmp_path):
    records = many(2)
    assignment = draw(records)
    hidden = splits.hidden_labels(records, assignment, 0.3, 0)
    seen = [replace(r, label=UNLABELLED) if h else r for r, h in zip(records, hidden, strict=True)]
    path = tmp_path / "splits.csv"
    splits.write(path, seen, assignment, HAM10000)
    found = splits.read(path, records, HAM10000)
    np.testing.assert_array_equal(found[0], assignment)
    np.testing.assert_array_equal(found[1], hidden)
    assert not splits.read(path, seen, HAM10000)[1].any()  # there is nothing left to hide
    known = np.array([r.label for r in records])[(assignment == "train") & ~hidden]
    counts = splits.class_counts(path, "train", HAM10000)
    np.testing.assert_array_equal(counts, np.bincount(known, minlength=7))
    members = splits.members_of(seen, assignment, "train", HAM10000)
    assert splits.members(path, "train") == members
    assert sum(not name for _, name in members) == hidden.sum()


def test_images_without_a_label_follow_their_lesion_and_are_else_in_train():
    records = many(0)
    none = [record(f"N{i}", UNLABELLED, f"N{i // 2}") for i in range(20)]
    joined = [record(f"J{i}", UNLABELLED, f"L{i}") for i in range(300)]
    assignment = draw(records + none + joined)
    np.testing.assert_array_equal(assignment[: len(records)], draw(records))
    assert set(assignment[len(records) : len(records) + 20]) == {"train"}
    sides = sides_of_lesions(records + none + joined, assignment)
    assert all(len(own) == 1 for own in sides.values())
