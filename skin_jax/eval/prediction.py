"""Predicting image files of any kind with one or several runs, in constant memory."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from skin_jax.base import csvs, devices
from skin_jax.base.errors import PARTIAL, UserError, listed, warn
from skin_jax.base.files import check_writable, write_atomically
from skin_jax.base.folder import check_own
from skin_jax.base.threads import workers
from skin_jax.data import images
from skin_jax.data.classes import Classes
from skin_jax.data.examples import check_skipped, write_skipped
from skin_jax.data.findings import is_litter, kind_of
from skin_jax.eval import calibration, familiarity, inference, tables
from skin_jax.eval.member import Member
from skin_jax.training.run import Trained, trained

SUFFIXES = images.SUFFIXES | {".heic", ".heif", ".dcm"}
"""File name endings, in lower case, that are taken for images in a folder.

The last three are images that Pillow does not read: they are listed as such, not passed over.
"""

_MAX_WORKERS = 16
_HEAT_MAPS = ".heat_maps"  # marks a folder whose pictures may be replaced
_NAMED = 5  # images in a warning
_DETAILS = (
    *("image", "predicted", "confidence", "second"),
    *("calibrated_probability", "distance_percentile", "flagged"),
)

Overlay = Callable[[np.ndarray, Sequence[np.ndarray], str], bytes]
"""An image uint8 [S, S, 3], heat maps of it and a caption -> a PNG."""

Skipped = list[tuple[str, str]]
Decoded = tuple[np.ndarray, ...] | images.UnreadableImage


def predict_files(
    workdirs: Sequence[Path],
    inputs: Sequence[str],
    out: Path,
    *,
    tta: bool = False,
    scales: Sequence[float] = (1.0,),
    details: Path | None = None,
    explain_dir: Path | None = None,
    overlay: Overlay | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> int:
    """Predicts images with the best checkpoint of each run and writes the challenge's CSV.

    Args:
      workdirs: of the runs, whose probabilities are averaged; their image sizes may differ.
      inputs: folders, searched with their subfolders, and files.
      out: the CSV; unreadable images are listed next to it, in `<stem>.skipped.csv`.
      tta: averages over the 8 orientations of each image.
      scales: averages over its middle, at these shares of its side in (0, 1]; 1 is the whole.
      details: a second CSV, `image, predicted, confidence, second, calibrated_probability,
        distance_percentile, flagged`; the last three are empty where `skin_jax.eval.calibrate` has
        not prepared all of the runs.
      explain_dir: where `<image>.png`, drawn by `overlay`, shows what speaks for the predicted
        class of each image.
      batch_size: images at a time, rounded up to a multiple of the devices.
      progress: shows a progress bar on stderr.

    Returns:
      The exit status: 0, or PARTIAL where images were left out or files share a name.

    Raises:
      UserError: no images or no readable one; results that could not be written; a folder that is
        not one of a run, or has no checkpoint; a task that does not classify or explain.
    """
    files, skipped, passed_over = find_images(inputs)
    if passed_over:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(passed_over.items()))
        warn(f"not read: {kinds}")
    ids, ambiguous = image_ids(files)
    skipped_path = out.with_name(f"{out.stem}.skipped.csv")
    csv_paths = [path for path in (out, skipped_path, details) if path is not None]
    _check_targets(files, ids, csv_paths, explain_dir)
    check_skipped(skipped_path)
    mesh = devices.make_mesh(None)
    runs = [trained(workdir) for workdir in workdirs]
    classes = _same_classes(runs)
    for run, ability in itertools.product(runs, ["predict"] + ["explain"] * bool(explain_dir)):
        run.ability(ability)  # refused before any work
    members = [Member(run, mesh) for run in runs]
    lacking = [run.workdir for run, m in zip(runs, members, strict=True) if m.reference is None]
    if details:
        for workdir in lacking:
            warn(
                f"columns of {details} stay empty: {workdir} has no {calibration.FILE_NAME} or "
                f"{familiarity.FILE_NAME}, which skin_jax.eval.calibrate --workdir={workdir} "
                "makes for a classifier"
            )
    views = inference.views(tta, scales)
    batch_size = -(-min(batch_size, len(files)) // mesh.size) * mesh.size
    sizes = list(dict.fromkeys(member.image_size for member in members))
    probabilities = np.empty((len(files), len(classes)))
    calibrated = np.full_like(probabilities, np.nan)
    percentiles = np.full(len(files), np.nan)
    good: list[int] = []

    bar = tqdm(total=len(files), unit=" images", desc="Predicting", disable=not progress)
    with bar, ThreadPoolExecutor(workers(_MAX_WORKERS)) as pool:
        # A batch is decoded while the one before is predicted.
        readable = _readable(_decoded(pool, files, sizes, batch_size), files, skipped)
        for batch in iter(lambda: [*itertools.islice(readable, batch_size)], []):
            places = [place for place, _ in batch]
            padded = [*batch, *batch[-1:] * (batch_size - len(batch))]  # one size compiles once
            stacks = {
                size: np.stack([pixels[k] for _, pixels in padded]) for k, size in enumerate(sizes)
            }
            found = [m.probabilities(stacks[m.image_size], views) for m in members]
            values = np.mean(found, axis=0)
            probabilities[places] = values[: len(places)]
            if not lacking:
                pairs = zip(members, found, strict=True)
                each = np.mean([m.calibrated(own, views) for m, own in pairs], axis=0)
                calibrated[places] = each[: len(places)]
                unlike = np.mean([m.percentile(stacks[m.image_size]) for m in members], axis=0)
                percentiles[places] = unlike[: len(places)]
            if explain_dir and overlay:
                labels = values.argmax(axis=1).astype(np.int32)
                maps = [m.call("explain", stacks[m.image_size], labels) for m in members]
                captions = [
                    f"{classes.titled(label)}  {share:.1%}"
                    for label, share in zip(labels, values.max(axis=1), strict=True)
                ]
                shown = stacks[max(sizes)][: len(places)]
                pictures = pool.map(overlay, shown, zip(*maps, strict=True), captions)
                for place, picture in zip(places, pictures, strict=True):
                    write_atomically(explain_dir / f"{ids[place]}.png", picture)
            good += places
            bar.update(places[-1] + 1 - bar.n)
        bar.update(len(files) - bar.n)

    problems = [f"{file}: {reason}" for file, reason in skipped]
    if not good:
        write_skipped(skipped_path, skipped)
        raise listed("none of the images can be read", problems)
    tables.write_predictions(out, [ids[i] for i in good], probabilities[good], classes)
    if details:
        rows = _detailed(probabilities, calibrated, percentiles, classes)
        text = csvs.text([_DETAILS, *([ids[i], *rows[i]] for i in good)])
        write_atomically(details, text)
    if unlike_any := [ids[i] for i in good if percentiles[i] > familiarity.FLAGGED_ABOVE]:
        some = ", ".join(unlike_any[:_NAMED]) + ", ..." * (len(unlike_any) > _NAMED)
        warn(
            f"{len(unlike_any)} of {len(good)} images are less like the training images than "
            f"{familiarity.FLAGGED_ABOVE:.0f}% of the validation images, so that what is predicted "
            f"for them may mean nothing: {some}"
        )
    if skipped:
        write_skipped(skipped_path, skipped)
        warn(str(listed(f"unreadable files were left out; see {skipped_path}", problems)))
    else:
        skipped_path.unlink(missing_ok=True)  # of an earlier call
    if ambiguous:
        warn(
            f"{ambiguous} files share their name with another file: for these, the column image "
            "has the extension, too"
        )
    print(f"predicted {len(good)} images: {out}", flush=True)
    return PARTIAL if skipped or ambiguous else 0


def _detailed(
    probabilities: np.ndarray, calibrated: np.ndarray, percentiles: np.ndarray, classes: Classes
) -> list[list[str]]:
    """The columns of `_DETAILS` but the first, of every image; empty where nothing is known."""

    def told(value: float) -> str:
        return "" if np.isnan(value) else repr(float(value))

    found = []
    for row, after, percentile in zip(probabilities, calibrated, percentiles, strict=True):
        first, second = np.argsort(-row, kind="stable")[:2]
        flagged = "" if np.isnan(percentile) else str(int(percentile > familiarity.FLAGGED_ABOVE))
        found.append(
            [
                *(classes.names[first], told(row[first]), classes.names[second]),
                *(told(after[first]), told(percentile), flagged),
            ]
        )
    return found


def find_images(inputs: Sequence[str]) -> tuple[list[str], Skipped, Counter[str]]:
    """The image files that folders and files name.

    In a folder, which is searched with its subfolders in sorted order, what has no image's suffix
    is passed over; a file named itself is always taken. Links to folders are followed, once each,
    but not those that lead back to where they are.

    Returns:
      The files; (folder, reason) of unreadable folders; and how many files of each kind are passed
      over, without `findings.is_litter` ones.

    Raises:
      UserError: paths that do not exist, or folders without images.
    """
    found: list[str] = []
    unreadable: Skipped = []
    passed_over = Counter[str]()
    problems = []
    for path in inputs:
        if os.path.isdir(path):
            failures: list[OSError] = []
            below = sorted(_walk(path, failures, passed_over))
            unreadable += [(str(e.filename), e.strerror or str(e)) for e in failures]
            found += below
            if not below:
                reasons = "".join(f" ({e.filename}: {e.strerror})" for e in failures[:1])
                others = f"; there are {', '.join(sorted(passed_over))}" if passed_over else ""
                problems.append(f"{path} holds no images{reasons}{others}")
        elif os.path.lexists(path):
            found.append(path)
        else:
            problems.append(f"{path} does not exist")
    if problems:
        several = listed("nothing to predict", problems)
        raise UserError(problems[0]) if len(problems) == 1 else several
    named: dict[str, str] = {}
    for path in found:  # a folder and a file in it may both be given
        named.setdefault(os.path.abspath(path), path)
    return list(named.values()), unreadable, passed_over


def _walk(root: str, failures: list[OSError], passed_over: Counter[str]) -> Iterator[str]:
    seen = {_identity(root)}
    top = os.path.realpath(root)

    def leads_on(folder: str, name: str) -> bool:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            target = os.path.realpath(path)
            around = (top, os.path.realpath(folder))
            if any(os.path.commonpath([target, inner]) == target for inner in around):
                return False
        identity = _identity(path)
        if is_litter(name) or identity in seen:
            return False
        seen.add(identity)
        return True

    for folder, subfolders, names in os.walk(root, onerror=failures.append, followlinks=True):
        # Links last: a folder is found under its own name rather than a link's beside it.
        subfolders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        subfolders[:] = [name for name in subfolders if leads_on(folder, name)]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not is_litter(name):
                yield str(path)
            elif not is_litter(name):
                passed_over[kind_of(path)] += 1


def _identity(folder: str) -> tuple[int, int] | str:
    try:
        found = os.stat(folder)
    except OSError:  # gone, or not to be looked into: the walk says so
        return folder
    return found.st_dev, found.st_ino


def image_ids(files: Sequence[str]) -> tuple[list[str], int]:
    """Distinct ids of distinct files, and how many could not have the plain one.

    The id is the file's name without extension; where several files would have the same, the name
    with it; where that is not enough, the path below the folder that holds them all.
    """
    paths = [os.path.abspath(file) for file in files]
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    names = [
        tuple(map(csvs.held, candidates))
        for path in paths
        for base in [os.path.basename(path)]
        for candidates in [(os.path.splitext(base)[0], base, os.path.relpath(path, common))]
    ]
    level = [0] * len(names)
    while True:
        ids = [name[k] for name, k in zip(names, level, strict=True)]
        counts = Counter(ids)
        clashes = [i for i, name in enumerate(ids) if counts[name] > 1 and level[i] < 2]
        if not clashes:
            return ids, sum(k > 0 for k in level)
        for i in clashes:
            level[i] += 1


def _check_targets(
    files: Sequence[str],
    ids: Sequence[str],
    csv_paths: Sequence[Path],
    explain_dir: Path | None,
) -> None:
    """Refuses results that could not be written, or would replace an image, before the work."""
    check_writable(*csv_paths)
    if len({os.path.realpath(path) for path in csv_paths}) < len(csv_paths):
        raise UserError(
            f"--details is {csv_paths[-1]}, which --out or its list of unreadable images is "
            "written to; choose another name"
        )
    targets = list(csv_paths)
    if explain_dir:
        targets += [explain_dir / f"{name}.png" for name in ids]
    given = {os.path.realpath(file) for file in files}
    for target in targets:
        if os.path.realpath(target) in given:
            raise UserError(
                f"{target} is one of the images and would be overwritten; choose another name"
            )
    if explain_dir:
        check_own(explain_dir, _HEAT_MAPS, "--explain", {f"{name}.png" for name in ids})
        check_writable(explain_dir / _HEAT_MAPS)
        explain_dir.mkdir(parents=True, exist_ok=True)
        (explain_dir / _HEAT_MAPS).touch()


def _same_classes(runs: Sequence[Trained]) -> Classes:
    """The classes that all runs have; refuses runs of different ones, which have no average."""
    first = runs[0]
    for other in runs:
        if other.classes.names != first.classes.names:
            raise UserError(
                f"{first.workdir} and {other.workdir} have different classes "
                f"({', '.join(first.classes.names)}; {', '.join(other.classes.names)}): their "
                "predictions cannot be averaged; give runs of the same classes"
            )
    return first.classes


def _decoded(
    pool: ThreadPoolExecutor, files: Sequence[str], sizes: Sequence[int], batch_size: int
) -> Iterator[Decoded]:
    """Each file in each size, in order; never more than a batch and the workers ahead."""

    def decode(file: str) -> Decoded:
        try:
            return tuple(images.decode(Path(file), size) for size in sizes)
        except images.UnreadableImage as error:
            return error

    waiting: deque[Future[Decoded]] = deque()
    remaining = iter(files)
    while True:
        for file in itertools.islice(remaining, batch_size + workers(_MAX_WORKERS) - len(waiting)):
            waiting.append(pool.submit(decode, file))
        if not waiting:
            return
        yield waiting.popleft().result()


def _readable(
    stream: Iterator[Decoded], files: Sequence[str], skipped: Skipped
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Images that can be read, by their place among the files; the others go to `skipped`."""
    for place, decoded in enumerate(stream):
        if isinstance(decoded, images.UnreadableImage):
            skipped.append((files[place], str(decoded)))
        else:
            yield place, decoded
