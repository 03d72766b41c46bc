import numpy as np
import pytest
from PIL import Image

from skin_jax.data.classes import HAM10000
from skin_jax.tasks import classifier
from skin_jax.tasks import state as state_lib
from skin_jax.training import checkpoints as checkpoint_lib
from skin_jax.training import loop
from skin_jax.training.run import start


@pytest.mark.as_compiled(only=True)
def test_both_pipelines_give_the_same_bits_from_disk(tmp_path):
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    for number in range(70):
        path = tmp_path / "data" / HAM10000.names[number % 7] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    digests = set()
    for pipeline in ("tf", "device"):
        config = classifier.defaults()
        config.update_from_flattened_dict(
            {
                "num_steps": 6,
                "batch_size": 8,
                "data.dir": str(tmp_path / "data"),
                "data.cache_dir": str(tmp_path / "cache"),
                "data.image_size": 32,
                "data.pipeline": pipeline,
                "model.name": "cnn",
                "model.width_multiplier": 0.125,
                "optimizer.warmup_steps": 1,
                "sharding.num_devices": 1,
                "log.tensorboard": False,
            }
        )
        workdir = tmp_path / pipeline
        experiment = start(config, workdir)
        checkpoints = checkpoint_lib.Checkpoints(workdir / "checkpoints")
        with checkpoint_lib.Preemption() as preemption:
            state = loop.train(experiment, checkpoints, workdir, preemption, [])
        checkpoints.close()
        digests.add(state_lib.digest(state))
    assert len(digests) == 1
