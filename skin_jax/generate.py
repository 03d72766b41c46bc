"""Generates images of chosen classes with a trained run.

python -m skin_jax.generate --workdir W --out DIR [--classes a,b] [--seed S] [--step N]
    [--per_class N | --balance_to N | --ratio R] [--truncation T] [--filter CLASSIFIER]
    [--shard i/n]

A generator that takes a class draws images of that class: the generator with the best score or,
with --step, the one that was kept at that step. With --filter, only images are kept to whose class
a classifier of the same training images gives a probability of 0.5 to 0.95, and that are no copies
of training images; up to --max_tries images of each class are drawn for that.

A semi-supervised GAN, here that of the best checkpoint or of --step, draws images of no class in
particular. Each is stored as 8 bits, judged by the run's own discriminator and put into the class
that it finds most likely, if its confidence is at least --min_confidence and the class is not full.

The same seed gives the same images, however many are asked for and of whatever classes. The same
command resumes a folder that is not full. All devices of the machine draw; for several machines,
start the command on each with another --shard, 0/4 to 3/4, and at last without it.

The exit status is 0, 1 (failure), 2 (usage or bad input) or 3 (some classes are not full after
--max_tries images; the images so far are kept).
"""

import math
from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError

FLAGS = flags.FLAGS

command.define_path("workdir", None, "Folder of a trained run.")
command.define_path("out", None, "Folder for the images and their manifest.csv.")
flags.DEFINE_list("classes", None, "Classes to draw; all of the run by default.")
flags.DEFINE_integer("step", None, "Use the generators of this step; the best ones by default.", 0)
flags.DEFINE_integer("per_class", None, "Images per class; 100 by default.", lower_bound=1)
flags.DEFINE_integer(
    "balance_to",
    None,
    "Fill each class up to this many images, including the real training images.",
    lower_bound=1,
)
flags.DEFINE_float(
    "ratio", None, "Images to draw for each real training image of a class.", lower_bound=0.0
)
flags.DEFINE_float(
    "truncation",
    1.0,
    "Factor on the noise; below 1, images differ less and are more typical of their class.",
    lower_bound=0.0,
)
command.define_path(
    "filter", None, "Folder of a trained classifier that chooses the images that are kept."
)
flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)
flags.DEFINE_float(
    "min_confidence",
    None,
    "Smallest confidence of the discriminator in the class of an image; 0.5 by default.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer(
    "max_tries",
    None,
    "Stop after drawing this many images: with --filter of each class, by default 50 per image of "
    "it; else of all together, by default 50 per image of the largest class, at least 10,000.",
    lower_bound=1,
)
flags.DEFINE_string(
    "shard",
    None,
    "Draw a share of the images, i/n with i from 0; the same command without it, when all are "
    "done, puts them together.",
)


def main(argv: list[str]) -> None:
    """Parses the flags and generates; see the module's docstring."""
    if argv[1:]:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not FLAGS.workdir or not FLAGS.out:
        raise UserError("give both --workdir=DIR and --out=DIR; see --help")
    given = [name for name in ("per_class", "balance_to", "ratio") if FLAGS[name].value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other; give one of them")
    for name in ("ratio", "min_confidence", "truncation"):
        value = FLAGS[name].value
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number")
    share = None if FLAGS.shard is None else command.shard_in(FLAGS.shard)
    from skin_jax.eval import generation  # JAX takes its time to import: not for --help
    from skin_jax.eval.parts import Share
    from skin_jax.report import figures

    generation.generate(
        Path(FLAGS.workdir),
        Path(FLAGS.out),
        generation.Amount(FLAGS.per_class, FLAGS.balance_to, FLAGS.ratio),
        figures.image_grid,
        classes=None if FLAGS.classes is None else FLAGS.classes or [""],
        seed=FLAGS.seed,
        step=FLAGS.step,
        truncation=FLAGS.truncation,
        filter_by=Path(FLAGS.filter) if FLAGS.filter else None,
        min_confidence=FLAGS.min_confidence,
        max_tries=FLAGS.max_tries,
        share=Share(*share) if share else None,
    )


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
