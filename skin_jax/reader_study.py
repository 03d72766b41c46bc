"""Makes and scores a reader study: can people tell generated images from real ones?

python -m skin_jax.reader_study --make --workdir=W --generated=DIR --out=study.html
    [--images=50] [--seed=0] [--diagnosis]
python -m skin_jax.reader_study --score --key=study.key.json --answers=A.csv[,B.csv...] --out=DIR

--make writes one page that readers open in a browser, without a server, and next to it the key:
validation images of the run and as many generated ones, in random order. Keep the key to yourself.
At its end the page gives a table of the answers. --score reads those of any number of readers and
writes scores.json, report.md and report.html. DIR is a folder of skin_jax.generate.
"""

from pathlib import Path

from absl import flags

from skin_jax.base import command
from skin_jax.base.errors import UserError, warn
from skin_jax.base.folder import check_own

_MAKE = flags.DEFINE_bool("make", False, "Make a study.")
_SCORE = flags.DEFINE_bool("score", False, "Score the answers of readers.")
_WORKDIR = command.define_path("workdir", None, "Folder of a trained run; --make.")
_GENERATED = command.define_path("generated", None, "Folder of generated images; --make.")
_IMAGES = flags.DEFINE_integer("images", 50, "Images of each kind; --make.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Which images; --make.", 0, 2**32 - 1)
_DIAGNOSIS = flags.DEFINE_bool("diagnosis", False, "Ask for the class, too; --make.")
_KEY = command.define_path("key", None, "The .key.json of a study; --score.")
_ANSWERS = command.define_paths("answers", "Tables of readers, comma-separated; --score.")
_OUT = command.define_path("out", None, "The page to make, or the folder for the scores.")


def main(argv: list[str]) -> None:
    """The command line's work; see the module's docstring."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; several files are separated by commas")
    if _MAKE.value == _SCORE.value:
        raise UserError("give one of --make and --score; see --help")
    others = (_KEY, _ANSWERS) if _MAKE.value else (_WORKDIR, _GENERATED, _IMAGES, _SEED, _DIAGNOSIS)
    if given := [f"--{flag.name}" for flag in others if flag.present]:
        raise UserError(f"{given[0]} does not go with --{'make' if _MAKE.value else 'score'}")
    if _MAKE.value:
        if not (_WORKDIR.value and _GENERATED.value and _OUT.value):
            raise UserError("--make needs --workdir=DIR, --generated=DIR and --out=FILE.html")
        _make(Path(_WORKDIR.value), Path(_GENERATED.value), Path(_OUT.value))
    else:
        if not (_KEY.value and _ANSWERS.value and _OUT.value):
            raise UserError("--score needs --key=FILE, --answers=FILE.csv and --out=DIR")
        answers = [Path(path) for given in _ANSWERS.value for path in command.paths_in(given)]
        _score(Path(_KEY.value), answers, Path(_OUT.value))


def _make(workdir: Path, folder: Path, out: Path) -> None:
    if out.suffix.lower() != ".html":
        raise UserError(f"--out={out} is the page to make: give a name that ends in .html")
    from skin_jax.base.files import check_writable, write_atomically
    from skin_jax.eval import reader_items
    from skin_jax.report import reader_page

    key_file = out.with_suffix(".key.json")
    check_writable(out, key_file)
    key, classes, images = reader_items.make(
        workdir, folder, _IMAGES.value, seed=_SEED.value, diagnosis=_DIAGNOSIS.value
    )
    key.write(key_file)  # first: a page without its key is of no use
    page = reader_page.html(key.study, list(key.items), images, classes if key.diagnosis else None)
    write_atomically(out, page)
    size = out.stat().st_size
    if size > 20e6:  # more than mail servers commonly pass on
        warn(f"{out} has {size / 1e6:.0f} MB, too much for many mail servers; --images says less")
    print(f"{len(images)} images, half of them real: {out} ({size / 1e6:.1f} MB), for the readers")
    print(f"the key, which no reader may see: {key_file}")


def _score(key_file: Path, files: list[Path], out: Path) -> None:
    check_own(out, "scores.json", "--out", ("report.md", "report.html"))
    from skin_jax.eval import reader_items, readers
    from skin_jax.report import readers as readers_report

    key = reader_items.read_key(key_file)
    answers = reader_items.read_answers(files, key)
    generated, labels = key.generated, key.labels
    by_class = {
        name: readers.detection(answers.called[labels == c], generated[labels == c])
        for c, name in enumerate(key.classes)
        if (labels == c).any()
    }
    diagnoses = None
    if key.diagnosis:
        diagnoses = readers.diagnosis(answers.diagnoses == labels[:, None], generated)
    found = readers.detection(answers.called, generated)
    print(readers_report.write(out, key, answers, found, by_class, diagnoses))
    print(f"results: {out}")


def run() -> None:
    """Runs the command."""
    command.run(main)


if __name__ == "__main__":
    run()
