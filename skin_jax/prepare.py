"""Checks a data folder, prepares its images and says what is in it.

    python -m skin_jax.prepare --data_dir=FOLDER

Training does the same; run alone, it shows what is wrong before you pay for a machine.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from skin_jax.base import command, files
from skin_jax.base.settings import MAX_SEED
from skin_jax.data import reading
from skin_jax.data.classes import UNLABELLED

if TYPE_CHECKING:
    from skin_jax.data.examples import Examples

FLAGS = flags.FLAGS

command.define_path("data_dir", None, "Folder in a known layout, or, with --table, of images.")
reading.define_flags()
flags.DEFINE_enum(
    "on_missing_label", "error", ["error", "keep"], "What to do about rows without a label."
)
flags.DEFINE_integer("image_size", 224, "Side of the prepared images in pixels.", 1)
command.define_path("cache_dir", files.CACHE_ROOT, "Where prepared images are kept.")
flags.DEFINE_enum("on_bad_image", "error", ["error", "skip"], "What to do about unreadable images.")
flags.DEFINE_bool("download", False, "Without --data_dir: download the ISIC 2018 archives (3 GB).")
command.define_path("out", ".", "Folder for skipped.csv.")
flags.DEFINE_enum("split", "lesion", ["lesion", "paper", "official"], "Which split to show.")
flags.DEFINE_list("split_fractions", ["0.7", "0.1", "0.2"], "Shares of train, val and test.")
flags.DEFINE_integer("split_seed", 0, "Seed of the split.", 0, MAX_SEED)
flags.DEFINE_integer("fold", None, "0 to 4: show a fold of the cross-validation.", 0, 4)

_BAR = 40


def main(argv: list[str]) -> int:
    """Prepares the images and prints classes, lesions and splits; returns the exit status."""
    # Imported here: they take seconds, and --help needs none of them.
    from skin_jax.base.errors import UserError
    from skin_jax.data import splits, store
    from skin_jax.data.examples import check_skipped, write_skipped

    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; did you mean --data_dir={argv[1]}?")
    try:
        train, val, test = map(float, FLAGS.split_fractions)
    except ValueError:
        raise UserError(f"--split_fractions are three numbers: {FLAGS.split_fractions}") from None
    skipped = Path(FLAGS.out) / "skipped.csv"
    if FLAGS.on_bad_image == "skip":
        check_skipped(skipped)
    examples = store.prepare(
        FLAGS.data_dir,
        image_size=FLAGS.image_size,
        cache_dir=FLAGS.cache_dir,
        on_bad_image=FLAGS.on_bad_image,
        download=FLAGS.download,
        reading=reading.from_flags(),
    )
    assignment = splits.draw(
        examples.records,
        split=FLAGS.split,
        fractions=(train, val, test),
        split_seed=FLAGS.split_seed,
        fold=FLAGS.fold,
    )
    print(_classes(examples))
    print(_units(examples))
    print(_sizes(examples, list(assignment)))
    if shared := splits.shared_lesions(examples.records, assignment):
        print(f"{shared} test images show a {examples.unit} that is also in train.")
    if examples.skipped:
        write_skipped(skipped, examples.skipped)
        print(f"{len(examples.skipped)} unreadable images were left out; see {skipped}")
    return 0


def _classes(examples: "Examples") -> str:
    counts = Counter(record.label for record in examples.records)
    total = len(examples.records)
    largest = max(counts[label] for label in range(len(examples.classes)))
    width = _width(examples)
    rows = [f"{total} images of {examples.images.shape[1]}x{examples.images.shape[2]} pixels"]
    for label, name in enumerate(examples.classes.names):
        bar = "#" * round(_BAR * counts[label] / largest)
        share = counts[label] / total
        rows.append(f"  {name:{width}} {counts[label]:6} {share:6.1%}  {bar}".rstrip())
    if without := counts[UNLABELLED]:
        rows.append(f"  {'':{width}} {without:6} {without / total:6.1%}  (no label)")
    return "\n".join(rows)


def _units(examples: "Examples") -> str:
    if examples.unit == "image":
        return "no lesions or patients are known: every image, with its copies, counts for itself"
    sizes = Counter(Counter(record.lesion_id for record in examples.records).values())
    several = sum(count for images, count in sizes.items() if images > 1)
    most = f" (at most {max(sizes)})" if several else ""
    return f"{sizes.total()} {examples.unit}s, {several} of them with several images{most}"


def _sizes(examples: "Examples", assignment: list[str]) -> str:
    from skin_jax.data import splits

    counts = Counter(
        (side, record.label) for record, side in zip(examples.records, assignment, strict=True)
    )
    which = f"split '{FLAGS.split}'" + (f", fold {FLAGS.fold}" if FLAGS.fold is not None else "")
    width = max(7, _width(examples) + 2)
    header = "".join(f"{name:>{width}}" for name in examples.classes.names)
    rows = [f"{which}, images per class", f"  {'':6}{header}{'all':>8}"]
    for side in splits.SPLITS:
        cells = [counts[side, label] for label in range(len(examples.classes))]
        rows.append(f"  {side:6}" + "".join(f"{c:{width}}" for c in cells) + f"{sum(cells):8}")
    return "\n".join(rows)


def _width(examples: "Examples") -> int:
    return max(5, *map(len, examples.classes.names))


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
