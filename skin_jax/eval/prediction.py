"""Predicting image files of any kind with one or several runs, in constant memory."""

import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

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
from skin_jax.eval.inference import View
from skin_jax.eval.member import Member
from skin_jax.eval.parts import Parts, Share, digest
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


class _Found(NamedTuple):
    """What is known of a batch of files: of those that can be read, and of the others.

    places and unreadable are the places among all files, int64; probabilities and calibrated are
    float64 [b, n] and percentiles float64 [b], in the order of places, and reasons say why the
    others cannot be read.
    """

    places: np.ndarray
    probabilities: np.ndarray
    calibrated: np.ndarray
    percentiles: np.ndarray
    unreadable: np.ndarray
    reasons: np.ndarray


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
    share: Share | None = None,
) -> int:
    """Predicts images with the best checkpoint of each run and writes the challenge's CSV.

    Several processes may predict them, each with another `share`, in any order and on any machines
    that see the images and the folder of `out`; a call without takes what they found, and predicts
    what they did not. Its files are the same as without them.

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
      share: of the batches, whose results are kept in `<stem>.parts` for a call without a share.

    Returns:
      The exit status: 0, or PARTIAL where images were left out or files share a name, which only a
      call without a share tells.

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
    for workdir, member in zip(workdirs, members, strict=True) if details else ():
        if member.reference is None:
            warn(
                f"columns of {details} stay empty: {workdir} has no {calibration.FILE_NAME} or "
                f"{familiarity.FILE_NAME}, which skin_jax.eval.calibrate --workdir={workdir} "
                "makes for a classifier"
            )
    views = inference.views(tta, scales)
    batch_size = -(-min(batch_size, len(files)) // mesh.size) * mesh.size
    parts = Parts(
        out.with_name(f"{out.stem}.parts"),
        lambda: {
            "runs": [member.identity for member in members],
            "images": digest([*map(_identity, files, ids)]),
            "batch_size": batch_size,
            "tta": tta,
            "scales": [*scales],
            "explain": explain_dir is not None,
        },
        "predictions",
        make=share is not None,
    )
    batches = [
        range(first, min(first + batch_size, len(files)))
        for first in range(0, len(files), batch_size)
    ]
    own = [batch for k, batch in enumerate(batches) if share is None or k in share]
    kept = {batch: parts.load(str(batch.start)) for batch in own}
    found = {batch: _Found(**arrays) for batch, arrays in kept.items() if arrays is not None}
    left = [batch for batch in own if batch not in found]
    sizes = list(dict.fromkeys(member.image_size for member in members))

    def pictured(
        places: Sequence[int], shown: np.ndarray, values: np.ndarray, maps: Sequence[np.ndarray]
    ) -> None:
        assert explain_dir
        assert overlay
        captions = [
            f"{classes.titled(label)}  {largest:.1%}"
            for label, largest in zip(values.argmax(axis=1), values.max(axis=1), strict=True)
        ]
        pictures = pool.map(overlay, shown, zip(*maps, strict=True), captions)
        for place, picture in zip(places, pictures, strict=True):
            write_atomically(explain_dir / f"{ids[place]}.png", picture)

    picture = pictured if explain_dir and overlay else None
    bar = tqdm(total=sum(map(len, own)), unit=" images", desc="Predicting", disable=not progress)
    with bar, ThreadPoolExecutor(workers(_MAX_WORKERS)) as pool:
        bar.update(sum(map(len, found)))
        # A batch is decoded while the one before is predicted.
        chosen = [files[place] for batch in left for place in batch]
        decoded = _decoded(pool, chosen, sizes, batch_size)
        for batch in left:
            found[batch] = _predicted(
                members, views, batch, decoded, batch_size, len(classes), picture
            )
            if share is not None:
                parts.save(str(batch.start), found[batch]._asdict())
            bar.update(len(batch))
    if share is not None:
        print(
            f"share {share.number}/{share.of} is done, {sum(map(len, own))} of {len(files)} "
            f"images; when all are, the same command without --shard writes {out}",
            flush=True,
        )
        return 0

    in_order = [found[batch] for batch in batches]
    skipped += [
        (files[place], str(reason))
        for each in in_order
        for place, reason in zip(each.unreadable, each.reasons, strict=True)
    ]
    problems = [f"{file}: {reason}" for file, reason in skipped]
    good = [ids[place] for each in in_order for place in each.places]
    if not good:
        write_skipped(skipped_path, skipped)
        raise listed("none of the images can be read", problems)
    probabilities, calibrated, percentiles = (
        np.concatenate([getattr(each, name) for each in in_order])
        for name in ("probabilities", "calibrated", "percentiles")
    )
    tables.write_predictions(out, good, probabilities, classes)
    if details:
        rows = _detailed(probabilities, calibrated, percentiles, classes)
        pairs = zip(good, rows, strict=True)
        write_atomically(details, csvs.text([_DETAILS, *([name, *row] for name, row in pairs)]))
    if unlike := [good[i] for i in np.flatnonzero(percentiles > familiarity.FLAGGED_ABOVE)]:
        some = ", ".join(unlike[:_NAMED]) + ", ..." * (len(unlike) > _NAMED)
        warn(
            f"{len(unlike)} of {len(good)} images are less like the training images than "
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
    parts.remove()
    print(f"predicted {len(good)} images: {out}", flush=True)
    return PARTIAL if skipped or ambiguous else 0


def _predicted(
    members: Sequence[Member],
    views: Sequence[View],
    batch: Sequence[int],
    decoded: Iterator[Decoded],
    batch_size: int,
    num_classes: int,
    picture: Callable[[Sequence[int], np.ndarray, np.ndarray, Sequence[np.ndarray]], None] | None,
) -> _Found:
    """Predicts the next files that are decoded, whose places these are.

    `picture` is given the places, the pixels, the probabilities and the heat maps of each member.
    """
    places, sources, unreadable = [], [], []
    for place, pixels in zip(batch, decoded, strict=False):
        if isinstance(pixels, images.UnreadableImage):
            unreadable.append((place, str(pixels)))
        else:
            places.append(place)
            sources.append(pixels)
    count, shape = len(places), (len(places), num_classes)
    values, calibrated = np.empty(shape), np.full(shape, np.nan)
    percentiles = np.full(count, np.nan)
    if count:
        padded = [*sources, *sources[-1:] * (batch_size - count)]  # one size compiles once
        stacks = {pixels.shape[1]: pixels for pixels in map(np.stack, zip(*padded, strict=True))}
        seen = [stacks[member.image_size] for member in members]
        found = [m.probabilities(pixels, views) for m, pixels in zip(members, seen, strict=True)]
        whole = np.mean(found, axis=0)
        values = whole[:count]
        if all(member.reference for member in members):
            each = [
                calibration.applied(own, m.temperature(views))
                for m, own in zip(members, found, strict=True)
            ]
            calibrated = np.mean(each, axis=0)[:count]
            unlike = [m.percentile(pixels) for m, pixels in zip(members, seen, strict=True)]
            percentiles = np.mean(unlike, axis=0)[:count]
        if picture:
            labels = whole.argmax(axis=1).astype(np.int32)
            maps = [
                m.call("explain", pixels, labels) for m, pixels in zip(members, seen, strict=True)
            ]
            picture(places, stacks[max(stacks)][:count], values, maps)
    return _Found(
        np.array(places, np.int64),
        values,
        calibrated,
        percentiles,
        np.array([place for place, _ in unreadable], np.int64),
        np.array([reason for _, reason in unreadable], np.str_),
    )


def _identity(file: str, name: str) -> str:
    """An image's id, and what changes with the contents of its file."""
    try:
        found = os.stat(file)
    except OSError:  # gone: reading it will say so
        return name
    return f"{name} {found.st_size} {found.st_mtime_ns}"


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
    seen = {_inode(root)}
    top = os.path.realpath(root)

    def leads_on(folder: str, name: str) -> bool:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            target = os.path.realpath(path)
            around = (top, os.path.realpath(folder))
            if any(os.path.commonpath([target, inner]) == target for inner in around):
                return False
        identity = _inode(path)
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


def _inode(folder: str) -> tuple[int, int] | str:
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
