"""The loop: resuming, devices, divergence, preemption, evaluation; tiny networks, demo data."""

import dataclasses
import functools
import gzip
import importlib.util
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skin_jax import api
from skin_jax.base import devices, errors, interrupts
from skin_jax.base.files import locked
from skin_jax.data import demo
from skin_jax.data.classes import HAM10000
from skin_jax.eval import evaluators, inference, runs
from skin_jax.models.efficientnet_lite import LITE, EfficientNetLite
from skin_jax.tasks import classifier, dcgan, sgan
from skin_jax.tasks import state as state_lib
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import loop
from skin_jax.training.history import read_history
from skin_jax.training.run import start

needs_tf = pytest.mark.skipif(
    not importlib.util.find_spec("tensorflow"), reason="TensorFlow is not installed"
)


NO_PICTURES = evaluators.Pictures(samples=lambda *_: None, by_class=lambda *_: None)


def tiny(**changes):
    config = sgan.defaults()
    small = {
        "num_steps": 6,
        "batch_size": 8,
        "eval_batch_size": 16,
        "eval_every_steps": 4,
        "data.demo_images": demo.MIN_IMAGES,
        "data.image_size": 32,
        "data.pipeline": "device",
        "model.width": 4,
        "model.noise_size": 8,
        "sharding.num_devices": 1,
        "log.every_steps": 2,
        "log.tensorboard": False,
    }
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def run(workdir, config=None, **changes):
    """Trains without the final evaluation; the digest of the last state, and the state."""
    workdir.mkdir(exist_ok=True)
    experiment = start(config or tiny(**changes), workdir)
    checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints")
    watching = evaluators.make(experiment, NO_PICTURES)
    with checkpoint_lib.Preemption() as preemption:
        state = loop.train(experiment, checkpoints, workdir, preemption, watching)
    checkpoints.close()
    return state_lib.digest(state), state


def history(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("pipeline", "per_dispatch"),
    [
        ("device", 1),
        pytest.param("tf", 2, marks=[needs_tf, pytest.mark.as_compiled]),
        pytest.param("device", 2, marks=pytest.mark.soak),
        pytest.param("tf", 1, marks=[needs_tf, pytest.mark.soak]),
    ],
)
def test_a_restart_in_the_middle_changes_no_bit(tmp_path, pipeline, per_dispatch):
    settings = {"data__pipeline": pipeline, "steps_per_dispatch": per_dispatch}
    settings |= {"ema_decay": 0.9, "data__sampling": "balanced"}
    whole, _ = run(tmp_path / "whole", num_steps=8, **settings)
    run(tmp_path / "parts", num_steps=4, **settings)
    resumed, state = run(tmp_path / "parts", num_steps=8, **settings)
    assert resumed == whole
    assert int(state.step) == 8
    starts = [row["step"] for row in history(tmp_path / "parts") if "event" in row]
    assert starts == [0, 4]


@pytest.mark.parametrize("begun", [pytest.param(2, marks=pytest.mark.soak), 5])
def test_a_restart_at_a_growing_image_size_changes_no_bit(tmp_path, capsys, monkeypatch, begun):
    network = functools.partial(EfficientNetLite, stages=LITE[0][:1], last_features=8)
    monkeypatch.setitem(classifier.MODELS, "tiny", network)

    def growing(num_steps):
        config = classifier.defaults()
        common = tiny(num_steps=num_steps).to_dict()
        for section in ("model", "loss", "optimizer", "augment", "task"):
            del common[section]
        config.update(common)
        config.model.name, config.model.dropout = "tiny", 0.5
        config.data.sampling, config.loss.mixup = "power", 0.4
        config.data.image_size = 48
        config.growth.sizes = (32, 48)
        config.growth.epochs = (3 / (0.7 * demo.MIN_IMAGES / 8),)
        config.ema_decay, config.optimizer.schedule = 0.9, "constant"
        config.optimizer.warmup_steps = 1
        return config

    whole, _ = run(tmp_path / "whole", growing(6))
    said = capsys.readouterr().out
    assert "step 0: compiling the program for images of 32x32" in said
    assert "step 3: compiling the program for images of 48x48" in said
    run(tmp_path / "parts", growing(begun))
    resumed, _ = run(tmp_path / "parts", growing(6))
    assert resumed == whole


def test_ctrl_c_need_not_wait_for_a_compilation(tmp_path, monkeypatch):
    """Nothing is unsaved when the first program is compiled, nor that of another image size."""
    unsaved, original = [], loop.make_dispatch

    def looking(experiment):
        dispatch = original(experiment)

        def wrapped(*args):
            unsaved.append(interrupts.UNSAVED.is_set())
            return dispatch(*args)

        return wrapped

    monkeypatch.setattr(loop, "make_dispatch", looking)
    monkeypatch.setattr(sgan.Sgan, "train_size", lambda self, step: 32 if step < 3 else 16)
    monkeypatch.setattr(sgan.Sgan, "step_on", lambda self, mesh, size: self.train_step)
    run(tmp_path / "run", num_steps=5, eval_every_steps=5)
    assert unsaved == [False, True, True, False, True]


@pytest.mark.as_compiled
def test_a_restart_of_a_classifier_changes_no_bit_and_needs_no_weights(tmp_path, monkeypatch):
    network = functools.partial(EfficientNetLite, stages=LITE[0][:1], last_features=8)
    monkeypatch.setitem(classifier.MODELS, "tiny", network)
    loaded = []

    def pretrained(task, state):
        loaded.append(state)
        return state

    monkeypatch.setattr(classifier.Classifier, "pretrained", pretrained)

    def fine_tuning(num_steps):
        config = classifier.defaults()
        common = tiny(num_steps=num_steps).to_dict()
        for section in ("model", "loss", "optimizer", "augment", "task"):
            del common[section]
        config.update(common)
        config.model.name, config.model.dropout = "tiny", 0.5
        config.ema_decay, config.optimizer.schedule = 0.9, "constant"
        config.optimizer.warmup_steps = 2
        return config

    whole, state = run(tmp_path / "whole", fine_tuning(6))
    assert len(loaded) == 2  # on shapes before anything is written, then for the run
    run(tmp_path / "parts", fine_tuning(4))
    resumed, _ = run(tmp_path / "parts", fine_tuning(6))
    assert resumed == whole
    assert len(loaded) == 4  # not by the restart
    assert state.ema


def class_gans(**changes):
    config = dcgan.defaults()
    small = {
        "num_steps": 6,
        "batch_size": 4,
        "eval_every_steps": 2,
        "keep_generators_every": 2,
        "data.demo_images": demo.MIN_IMAGES,
        "data.image_size": 32,
        "data.pipeline": "device",
        "model.width": 4,
        "model.noise_size": 8,
        "score.images": 6,
        "sharding.num_devices": 1,
        "log.every_steps": 1,
        "log.tensorboard": False,
    }
    config.update_from_flattened_dict(
        small | {key.replace("__", "."): value for key, value in changes.items()}
    )
    config.classes = ("df", "nv")
    return config


@pytest.mark.parametrize(
    "per_dispatch",
    [pytest.param(1, marks=pytest.mark.soak), pytest.param(2, marks=pytest.mark.as_compiled)],
)
def test_a_restart_of_class_gans_changes_no_bit_and_keeps_generators(tmp_path, per_dispatch):
    whole, _ = run(tmp_path / "whole", class_gans(steps_per_dispatch=per_dispatch))
    run(tmp_path / "parts", class_gans(steps_per_dispatch=per_dispatch, num_steps=4))
    resumed, state = run(tmp_path / "parts", class_gans(steps_per_dispatch=per_dispatch))
    assert resumed == whole
    assert np.isfinite(state.best_score).all()
    assert set(state.best_step.tolist()) <= {2, 4, 6}
    for folder in ("whole", "parts"):
        kept = checkpoint_lib.Checkpoints(
            tmp_path / folder / checkpoint_lib.GENERATORS, read_only=True
        )
        assert kept.steps() == [4]  # of every second evaluation
        kept.close()


def test_a_class_trains_and_is_chosen_alone_as_among_others(tmp_path):
    _, both = run(tmp_path / "both", class_gans())
    config = class_gans()
    config.classes = ("df",)
    _, alone = run(tmp_path / "alone", config)
    np.testing.assert_allclose(both.best_score[:1], alone.best_score, rtol=1e-4)
    np.testing.assert_array_equal(both.best_step[:1], alone.best_step)


def test_class_gans_see_training_images_of_their_class_alone(tmp_path):
    (tmp_path / "run").mkdir()
    experiment = start(class_gans(), tmp_path / "run")
    train_images = set(experiment.indices("train").tolist())
    seen = []
    for feed in loop.feeds(experiment, 0):
        labels = experiment.examples.labels[np.asarray(feed["index"])]
        np.testing.assert_array_equal(labels, [3] * 4 + [5] * 4)
        np.testing.assert_array_equal(labels, feed["label"])
        seen += np.asarray(feed["index"]).tolist()
    assert len(seen) == 6 * 8
    assert set(seen) <= train_images


def test_generators_are_kept_at_evaluations_alone(tmp_path):
    """An epoch of 31 images in batches of 24: ten of them end between two steps."""
    (tmp_path / "run").mkdir()
    experiment = start(class_gans(), tmp_path / "run")
    with experiment.config.ignore_type():
        experiment.config.eval_every_steps = None
    odd = dataclasses.replace(experiment, steps_per_epoch=31 / 24, num_steps=10_000)
    due = [loop._due(odd, step - 1, step) for step in range(1, 9_999)]
    kept = [d for d in due if d.keep]
    assert all(d.evaluate for d in kept)
    assert len(kept) == sum(d.evaluate for d in due) // 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score__weights": "absent.safetensors"}, "--config.score.weights"),
        ({"sharding__num_devices": 5}, "config.sharding.num_devices is 5, but JAX sees 4 cpu"),
        ({"data__oversample_to": 50}, "config.data.oversample_to changes nothing for a network"),
    ],
)
def test_class_gans_that_cannot_run_leave_nothing_behind(tmp_path, change, words):
    (tmp_path / "run").mkdir()
    with pytest.raises(errors.UserError, match=words):
        start(class_gans(**change), tmp_path / "run", evaluators.check)
    assert not list((tmp_path / "run").iterdir())


def test_generators_of_an_unknown_run_are_not_taken_for_ones_own(tmp_path):
    (tmp_path / "run" / checkpoint_lib.GENERATORS).mkdir(parents=True)
    with pytest.raises(errors.UserError, match=r"holds (checkpoints|generators) but no config"):
        start(class_gans(), tmp_path / "run")


def test_classes_on_a_device_each_train_as_on_one_and_go_on_there(tmp_path):
    run(tmp_path / "one", class_gans(num_steps=4))
    run(tmp_path / "two", class_gans(num_steps=4, sharding__num_devices=2))
    names = [f"{key}/{c}" for key in ("d_loss", "g_loss", "g_grad_norm") for c in ("df", "nv")]
    rows = [
        [[row[name] for name in names] for row in history(tmp_path / folder) if names[0] in row]
        for folder in ("one", "two")
    ]
    assert len(rows[0]) == 4
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-5)
    _, state = run(tmp_path / "two", class_gans(num_steps=6))
    np.testing.assert_array_equal(state.gans.step, [6, 6])


ENOUGH = "; more would not help: each GAN trains on one device"


@pytest.mark.parametrize(
    ("count", "num_devices", "size", "said"),
    [
        (7, None, 4, "7 GANs on 4 cpu devices, at most 2 each"),
        (5, None, 3, f"5 GANs on 3 of 4 cpu devices, at most 2 each{ENOUGH}"),
        (1, None, 1, f"1 GAN on 1 of 4 cpu devices, at most 1 each{ENOUGH}"),
        (3, 4, 4, f"3 GANs on 3 of 4 cpu devices, at most 1 each{ENOUGH}"),
        (7, 3, 3, "7 GANs on 3 of 4 cpu devices, at most 3 each"),
    ],
)
def test_classes_are_shared_out_over_the_devices(tmp_path, count, num_devices, size, said):
    config = class_gans(sharding__num_devices=num_devices)
    config.classes = HAM10000.names[:count]
    experiment = start(config, tmp_path / "run")
    assert experiment.mesh.size == size
    assert experiment.task.shares(experiment.mesh) == said


def test_one_class_that_is_never_finite_is_named_once_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    init = dcgan.Dcgan.init

    def broken(task, rng):
        state = init(task, rng)
        kernel = state.gans.generator.params["layer2"]["kernel"]
        state.gans.generator.params["layer2"]["kernel"] = kernel.at[1].set(jnp.inf)
        return state

    monkeypatch.setattr(dcgan.Dcgan, "init", broken)
    steps = state_lib.MAX_NONFINITE_IN_A_ROW + 2
    _, state = run(tmp_path / "run", class_gans(num_steps=steps, eval_every_steps=100))
    err = capsys.readouterr().err
    assert err.count("steps in a row of the GAN of nv were not finite") == 1
    assert "GAN of df" not in err
    np.testing.assert_array_equal(state.gans.nonfinite, [0, steps])
    last = [row for row in history(tmp_path / "run") if "d_loss" in row][-1]
    assert last["d_loss"] == last["d_loss/df"]
    assert last["d_loss/nv"] is None


def test_from_class_gans_to_a_classifier_that_trains_with_their_images(
    tmp_path, capsys, generate_with
):
    api.train(class_gans(), tmp_path / "run")
    out = capsys.readouterr().out
    assert "step 6  swd: df 0." in out
    assert "the best generator of each class:" in out
    assert f"skin_jax.generate --workdir={tmp_path / 'run'}" in out
    assert f"full report: {tmp_path / 'run' / 'report.html'}" in out
    assert "how far apart its images are" in (tmp_path / "run" / "report.html").read_text()
    grids = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert grids == {"step_2.png", "step_4.png", "step_6.png"}

    generate_with(workdir=tmp_path / "run", out=tmp_path / "generated", per_class=3)
    config = classifier.defaults()
    common = tiny(num_steps=2).to_dict()
    for section in ("model", "loss", "optimizer", "augment", "task", "ema_decay"):
        del common[section]
    config.update(common)
    config.model.name, config.model.width_multiplier = "cnn", 0.1
    config.optimizer.warmup_steps = 0
    config.data.synthetic = str(tmp_path / "generated")
    api.train(config, tmp_path / "classifier")
    first = history(tmp_path / "classifier")[0]
    assert first["synthetic_examples"] == 6
    page = (tmp_path / "classifier" / "report.html").read_text()
    assert "generated, for training" in page


@pytest.fixture(scope="module")
def whole_and_part(tmp_path_factory):
    """The digest of a run of six steps, and the work folder of one that ended after four."""
    folder = tmp_path_factory.mktemp("damaged")
    whole, _ = run(folder / "whole", num_steps=6)
    run(folder / "part", num_steps=4, checkpoint__every_steps=2)
    return whole, folder / "part"


@pytest.mark.xdist_group("damaged")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's
@pytest.mark.parametrize("damage", ["flip", "truncate", "lose a file", "lose the state", "empty"])
def test_a_damaged_checkpoint_costs_steps_but_no_bit(tmp_path, whole_and_part, damage, capsys):
    whole, part = whole_and_part
    shutil.copytree(part, tmp_path / "part")
    step = tmp_path / "part" / "checkpoints" / "4"
    largest = max(
        (p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif damage == "truncate":
        largest.write_bytes(content[:10])
    elif damage == "lose a file":
        largest.unlink()
    else:
        shutil.rmtree(step / "state" if damage == "lose the state" else step)
        step.mkdir(exist_ok=True)
    resumed, _ = run(tmp_path / "part", num_steps=6, checkpoint__every_steps=2)
    assert resumed == whole
    printed = capsys.readouterr()
    assert f"warning: checkpoint {step}" in printed.err
    assert "resuming at step 2 of 6" in printed.out
    assert len(list((tmp_path / "part" / "damaged").iterdir())) == 1


@needs_tf
@pytest.mark.as_compiled(only=True)
def test_both_pipelines_give_the_same_bits(tmp_path):
    digests = {run(tmp_path / name, data__pipeline=name)[0] for name in ("tf", "device")}
    assert len(digests) == 1


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("pipeline", [pytest.param("tf", marks=needs_tf), "device"])
def test_only_what_the_pipeline_sends_travels_to_the_devices(tmp_path, pipeline, devices):
    """And nothing comes back but metrics, every `log.every_steps`."""
    (tmp_path / "run").mkdir()
    config = tiny(data__pipeline=pipeline, sharding__num_devices=devices, log__every_steps=3)
    config.num_steps, config.eval_every_steps = 9, 100
    fetched = []

    def device_get(tree):
        fetched.append(tree)
        with jax.transfer_guard("allow"):
            return original(tree)

    original = jax.device_get
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_get", device_get)
        patch.setattr(jax.profiler, "start_trace", None)  # never called unless asked for
        patch.setattr(evaluators, "make", lambda *_: ())
        patch.setattr(checkpoint_lib.Checkpoints, "save", lambda *_: None)
        feeds = loop.feeds

        def guarded(*args):
            with jax.transfer_guard("disallow"):  # the pipeline asks for its own
                yield from feeds(*args)

        patch.setattr(loop, "feeds", guarded)
        run(tmp_path / "run", config)
    assert len(fetched) >= 3
    assert [len(rows) for rows in fetched[:3]] == [3, 3, 3]  # one transfer for three steps
    feed = next(iter(loop.feeds(start(config, tmp_path / "run"), 0)))
    images = "image" if pipeline == "tf" else "index"
    assert feed.keys() == {images, "label", "mask", "position"}


def test_an_array_of_the_host_in_a_dispatch_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    feeds = loop.feeds
    monkeypatch.setattr(
        loop, "feeds", lambda *args: (jax.tree.map(np.asarray, feed) for feed in feeds(*args))
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        run(tmp_path / "run")


@pytest.mark.parametrize(
    ("num_steps", "per_dispatch", "traced"), [(16, 1, 10), (4, 1, 3), (16, 4, 12)]
)
def test_a_profile_is_written_and_changes_no_bit(tmp_path, capsys, num_steps, per_dispatch, traced):
    settings = {"num_steps": num_steps, "steps_per_dispatch": per_dispatch}
    without, _ = run(tmp_path / "without", **settings)
    with pytest.MonkeyPatch.context() as patch:
        original = loop.make_dispatch

        def counting(experiment):
            dispatch = original(experiment)

            def wrapped(*args):
                with jax.profiler.TraceAnnotation("counted"):
                    return dispatch(*args)

            return wrapped

        patch.setattr(loop, "make_dispatch", counting)
        with_trace, _ = run(tmp_path / "with", profile=True, **settings)
    assert with_trace == without
    assert f"a trace of {traced} step(s) lies in {tmp_path / 'with' / 'profile'}" in (
        capsys.readouterr().out
    )
    (trace,) = (tmp_path / "with" / "profile").rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    assert sum(event.get("name") == "counted" for event in events) == traced // per_dispatch


def test_a_finished_run_is_resumed_with_and_without_a_profile(tmp_path, capsys):
    run(tmp_path / "run", num_steps=2)
    run(tmp_path / "run", num_steps=4, profile=True)
    assert "a trace of 1 step(s)" in capsys.readouterr().out
    run(tmp_path / "run", num_steps=4, profile=True)
    run(tmp_path / "run", num_steps=4)
    assert "a trace" not in capsys.readouterr().out


def test_another_seed_gives_other_weights_on_the_same_split(tmp_path):
    first, _ = run(tmp_path / "0", num_steps=2)
    second, _ = run(tmp_path / "1", num_steps=2, seed=1)
    assert first != second
    splits = [(tmp_path / name / "splits.csv").read_text() for name in "01"]
    assert splits[0] == splits[1]


@pytest.mark.as_compiled
def test_one_and_four_devices_agree_over_ten_steps(tmp_path):
    losses = []
    for count in (1, 4):
        folder = tmp_path / str(count)
        run(folder, num_steps=10, sharding__num_devices=count, log__every_steps=1)
        rows = read_history(folder / "metrics.jsonl")
        names = ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm")
        losses.append([[row[name] for name in names] for row in rows if "d_loss" in row])
    assert np.shape(losses[0]) == (10, 4)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def break_steps(monkeypatch, bad):
    """Steps for which `bad(step)` holds see a generator that is not a number."""
    original = sgan.Sgan.train_step

    def breaking(task, state, batch, rng):
        broken = bad(state.step)
        good = state.generator
        params = jax.tree.map(lambda x: jnp.where(broken, jnp.nan, x), good.params)
        new, metrics = original(
            task, state.replace(generator=good.replace(params=params)), batch, rng
        )
        generator = jax.tree.map(lambda a, b: jnp.where(broken, b, a), new.generator, good)
        return new.replace(generator=generator), metrics

    monkeypatch.setattr(sgan.Sgan, "train_step", breaking)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_this_jaxlib_knows_the_compiler_options(platform):
    options = devices.compiler_options(platform)
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_one_bad_step_among_several_a_dispatch_is_counted_and_shown(tmp_path, monkeypatch, capsys):
    break_steps(monkeypatch, lambda step: step == 2)
    _, state = run(tmp_path, num_steps=6, steps_per_dispatch=3, log__every_steps=3)
    assert (int(state.step), int(state.nonfinite), int(state.nonfinite_in_a_row)) == (6, 1, 0)
    rows = [row for row in history(tmp_path) if "d_loss" in row]
    assert [row["nonfinite"] for row in rows] == [1.0, 1.0]
    assert [row["nonfinite_in_a_row"] for row in rows] == [1.0, 0.0]
    assert "1 steps undone" in capsys.readouterr().out


def test_the_step_takes_nothing_from_the_host_but_its_feed(tmp_path):
    experiment = start(tiny(), tmp_path)
    dispatch = loop.make_dispatch(experiment)
    rng = jax.random.key(0)
    state = jax.device_put(experiment.task.init(rng), devices.replicated(experiment.mesh))
    feeds = list(loop.feeds(experiment, 0))
    state, _ = dispatch(state, experiment.pipeline.resident, feeds[0], rng)
    with jax.transfer_guard("disallow"):
        state, metrics = dispatch(state, experiment.pipeline.resident, feeds[1], rng)
    assert int(state.step) == 2
    assert np.isfinite(metrics["d_loss"])


def test_twenty_steps_that_are_not_finite_end_the_run_and_keep_the_checkpoint(
    tmp_path, monkeypatch
):
    break_steps(monkeypatch, lambda step: step >= 4)
    _, good = run(tmp_path / "good", num_steps=4)
    with pytest.raises(errors.UserError, match="20 steps in a row before step 24") as error:
        api.train(tiny(num_steps=60), tmp_path / "run")
    assert error.value.exit_code == errors.FAILURE
    checkpoints = checkpoint_lib.Checkpoints(tmp_path / "run" / "checkpoints")
    template = checkpoint_lib.template_of(good, devices.replicated(devices.make_mesh(1)))
    for restored, _ in (checkpoints.restore_latest(template), checkpoints.restore_best(template)):
        assert state_lib.digest(restored.generator) == state_lib.digest(good.generator)
        assert state_lib.digest(restored.discriminator) == state_lib.digest(good.discriminator)
    checkpoints.close()


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", num_steps=6)
    pending = [3]
    original = loop.make_dispatch

    def interrupting(experiment):
        dispatch = original(experiment)

        def wrapped(*args):
            pending[0] -= 1
            if pending[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return dispatch(*args)

        return wrapped

    monkeypatch.setattr(loop, "make_dispatch", interrupting)
    with pytest.raises(errors.Ended, match="saved at step 3 of 6") as error:
        run(tmp_path / "parts", num_steps=6)
    assert error.value.exit_code == errors.PREEMPTED
    resumed, _ = run(tmp_path / "parts", num_steps=6)
    assert resumed == whole


def scored(workdir):
    """The best step of a run and the scores of all evaluations, whichever start made them."""
    rows = {row["step"]: row for row in history(workdir) if "val_macro_auc" in row}
    experiment = start(tiny(num_steps=6, eval_every_steps=2), workdir)
    template = checkpoint_lib.template_of(
        jax.eval_shape(experiment.task.init, jax.random.key(0)),
        devices.replicated(experiment.mesh),
    )
    with checkpoint_lib.Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore_best(template)[1], rows


@pytest.mark.parametrize("moment", ["before", "within"])
def test_ctrl_c_leaves_an_evaluation_to_the_next_start(tmp_path, monkeypatch, moment):
    settings = {"num_steps": 6, "eval_every_steps": 2}
    whole, _ = run(tmp_path / "whole", **settings)
    target, name = {
        "before": (checkpoint_lib.Preemption, "requested"),
        "within": (evaluators.Classification, "__call__"),
    }[moment]
    original, evaluated = getattr(target, name), []

    def interrupted(self, *args):
        evaluated.append(args[-1])
        if args[-1] == 4:  # the step
            os.kill(os.getpid(), signal.SIGINT)
            assert moment == "before", "the evaluation was not ended"
        return original(self, *args)

    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupted)
        with pytest.raises(errors.Ended, match="saved") as error:
            run(parts, **settings)
    assert error.value.exit_code == errors.INTERRUPTED
    assert 4 in scored(tmp_path / "whole")[1]
    assert 4 not in scored(parts)[1]
    resumed, _ = run(parts, **settings)
    assert resumed == whole
    assert scored(parts) == scored(tmp_path / "whole")


def test_generators_that_became_the_best_in_an_interrupted_evaluation_are_found_again(
    tmp_path, monkeypatch
):
    """The evaluator of GANs of each class changes the state."""
    config = class_gans(num_steps=4)
    whole, state = run(tmp_path / "whole", config)
    assert int(state.best_step.max()) > 0

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(evaluators.Generators, "_warn_of_decline", interrupted)
        with pytest.raises(errors.Ended, match="saved"):
            run(tmp_path / "parts", config)
    resumed, _ = run(tmp_path / "parts", config)
    assert resumed == whole
    kept = [
        sorted(p.name for p in (tmp_path / run / "generators").iterdir())
        for run in ("whole", "parts")
    ]
    assert kept[0] == kept[1]


def test_a_whole_run_leaves_what_the_work_folder_promises(tmp_path, capsys):
    config = tiny(num_steps=4, eval_every_steps=2)
    api.train(config, tmp_path)
    out = capsys.readouterr().out
    assert "step 4/4" in out
    assert "left" in out
    assert "0.829" in out  # paper A's mean recall, beside this run's
    for name in (
        "config.json",
        "splits.csv",
        "samples/step_2.png",
        "samples/step_4.png",
        "report.html",
        "eval/test/metrics.json",
        "eval/test/predictions.csv",
        "eval/test/report.md",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    assert "cache_dir" not in (tmp_path / "report.html").read_text()  # reports are passed on
    first = history(tmp_path)[0]
    assert first == {
        "event": "start",
        "step": 0,
        "processes": 1,
        "devices": 1,
        "hardware": f"1 x cpu, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "real_examples": first["real_examples"],
        "unlabelled_examples": 0,
        "synthetic_examples": 0,
    }
    assert first["real_examples"] == (tmp_path / "splits.csv").read_text().count(",train")
    scores = [row for row in history(tmp_path) if "val_macro_auc" in row]
    assert [row["step"] for row in scores] == [2, 4]
    metrics = json.loads((tmp_path / "eval/test/metrics.json").read_text())
    assert metrics["num_examples"] == (tmp_path / "splits.csv").read_text().count(",test")
    assert np.sum(metrics["confusion_matrix"]) == metrics["num_examples"]


def test_a_finished_run_is_evaluated_again_without_training(tmp_path, capsys):
    config = tiny(num_steps=2, eval_every_steps=2)
    api.train(tiny(num_steps=2, eval_every_steps=2, final_split="val"), tmp_path)
    assert (tmp_path / "eval/val/predictions.csv").exists()
    assert not (tmp_path / "eval/test").exists()  # nor seen by anyone
    assert "; on val:" in capsys.readouterr().out
    api.train(config, tmp_path)
    first = (tmp_path / "eval/test/predictions.csv").read_text()
    api.train(config, tmp_path)
    assert (tmp_path / "eval/test/predictions.csv").read_text() == first
    assert [row["step"] for row in history(tmp_path) if "event" in row] == [0, 2, 2]


def test_other_settings_are_refused_before_anything_is_written(tmp_path):
    api.train(tiny(num_steps=2), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(errors.UserError, match=r"config\.batch_size: 8 there, 16 now"):
        api.train(tiny(num_steps=2, batch_size=16), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    "wrong", [{"loss__reading": "none"}, {"data__sampling": "foo"}, {"batch_size": 0}]
)
def test_a_start_that_came_to_nothing_leaves_nothing_behind(tmp_path, wrong):
    with pytest.raises(errors.UserError, match=f"config.{next(iter(wrong)).replace('__', '.')}"):
        api.train(tiny(**wrong), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("lost", ["config.json", "splits.csv", "examples.digest"])
def test_a_work_folder_that_lost_a_file_is_never_given_another_split(tmp_path, lost):
    api.train(tiny(num_steps=1), tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(errors.UserError, match=lost):
        api.train(tiny(num_steps=1), tmp_path)
    assert not (tmp_path / lost).exists()


def test_results_of_nobody_knows_which_run_are_never_replaced(tmp_path):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(errors.UserError, match=r"holds report\.html but no config"):
        api.train(tiny(num_steps=1), tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with locked(tmp_path / ".lock"), pytest.raises(errors.UserError, match="another run is"):
        api.train(tiny(), tmp_path)


def test_a_file_cannot_be_a_work_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(errors.UserError, match="cannot be written: "):
            api.train(tiny(), workdir)


def test_sigterm_during_evaluation_ends_at_once(tmp_path, monkeypatch):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was swallowed")

    monkeypatch.setattr(runs, "evaluate_split", interrupted)
    with pytest.raises(errors.Ended, match="asked to end") as error:
        api.train(tiny(num_steps=2), tmp_path)
    assert error.value.exit_code == errors.PREEMPTED
    assert (tmp_path / "checkpoints" / "2").exists()


def test_other_images_are_refused(tmp_path):
    api.train(tiny(num_steps=1), tmp_path)
    (tmp_path / "examples.digest").write_text("0" * 64)
    with pytest.raises(errors.UserError, match=r"examples\.digest is not the file that the run"):
        start(tiny(num_steps=1), tmp_path)


@pytest.mark.parametrize("size", [5, 64])
def test_evaluation_does_not_depend_on_the_batch_size(tmp_path, size):
    experiment = start(tiny(), tmp_path)
    state = experiment.task.init(jax.random.key(0))
    predictor = inference.make_predictor(experiment.task.predict, experiment.pipeline)
    indices = experiment.indices("test")
    expected = predictor(state, indices, 1)
    assert expected.shape == (len(indices), 7)
    np.testing.assert_allclose(predictor(state, indices, size), expected, atol=1e-6)
