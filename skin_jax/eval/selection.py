"""Which generated images are worth training on, judged by a classifier of the same images.

An image is kept if the classifier gives its class a probability of LEAST to MOST, so that it shows
the class and is none that the classifier knows already, and if it is no copy of a training image.
"""

import numpy as np

from skin_jax.base import devices
from skin_jax.base.errors import UserError
from skin_jax.eval import audit, candidates, features
from skin_jax.training.run import Trained, fitted_on, reopen

LEAST, MOST = 0.5, 0.95


def judgement(classifier: Trained, generator: Trained) -> candidates.Judgement:
    """The rule above as a judgement of images of any size; its confidences are the probabilities.

    A copy is an image whose features, by the classifier, are nearer to those of a training image
    than those of 99% of the validation images are; see `audit.Copies`.

    Raises:
      UserError: a run that does not classify, has other classes or training images than the
        generator's, or no validation images; training images that are gone.
    """
    own, other = classifier.workdir, generator.workdir
    classifier.ability("predict")
    if classifier.classes.names != generator.classes.names:
        raise UserError(
            f"--filter: the classes of {own} are {', '.join(classifier.classes.names)}, those of "
            f"{other} {', '.join(generator.classes.names)}"
        )
    if fitted_on(own) != fitted_on(other):
        raise UserError(
            f"--filter: {own} was trained on other images than {other}; give a classifier of the "
            "same training split"
        )
    mesh = devices.make_mesh(1)
    extractor = features.of_run(classifier, mesh)
    real = audit.real_images(reopen(own))
    if not len(real.val_images):
        raise UserError(
            f"--filter: {own} has no validation images, by which copies could be told from others"
        )
    described = extractor(real.images, "Training images")
    threshold = audit.copy_threshold(real.val_images, described, extractor)
    state, _ = classifier.best_state(mesh)
    size = classifier.config.data.image_size
    predict = candidates.predictor(classifier.task, state, own, size)

    def judge(name: str, images: np.ndarray) -> np.ndarray:
        confidences = predict(images)[:, classifier.classes.index(name)].astype(np.float64)
        confidences[(confidences < LEAST) | (confidences > MOST)] = np.nan
        left = np.flatnonzero(~np.isnan(confidences))
        if len(left):
            distances, _, _ = audit.nearest_training(images[left], described, extractor)
            confidences[left[distances < threshold]] = np.nan
        return confidences

    return judge
