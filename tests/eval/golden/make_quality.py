"""Writes quality.npz: features, and what torch-fidelity and prdc say about them.

python tests/eval/golden/make_quality.py

Run with numpy 2.4.6, torch 2.13.0, torch-fidelity 0.4.0 and prdc 0.2 in an environment of their
own. torch-fidelity imports Pillow and torchvision for its image data sets, which nothing here uses:
stand-ins take their place where they are not installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from prdc import compute_prdc

if find_spec("PIL") is None:
    sys.modules |= dict.fromkeys(("PIL", "PIL.Image"), MagicMock(__spec__=None))
if find_spec("torchvision") is None:
    names = ("", ".datasets", ".transforms", ".transforms.functional")
    sys.modules |= {f"torchvision{name}": MagicMock(__spec__=None) for name in names}

from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

K = 5
SUBSETS, SUBSET_SIZE, SEED = 7, 30, 2020


def measured(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Every value for one pair of sets, on float64 copies of the features."""
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    x, y = torch.from_numpy(real), torch.from_numpy(generated)
    equal = min(len(x), len(y))  # torch-fidelity's estimate is for subsets of one size
    whole = {"kid_subsets": 1, "kid_subset_size": equal, "verbose": False}
    subsets = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "rng_seed": SEED}
    statistics = [fid_features_to_statistics(features) for features in (x, y)]
    prc = prc_features_to_metric(y, x, prc_neighborhood=K, verbose=False)
    return {
        "kid": kid_features_to_metric(x[:equal], y[:equal], **whole)[
            "kernel_inception_distance_mean"
        ],
        "kid_subsets": kid_features_to_metric(x, y, **subsets, verbose=False)[
            "kernel_inception_distance_mean"
        ],
        "fid": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        "fidelity_precision": prc["precision"],
        "fidelity_recall": prc["recall"],
        **compute_prdc(real, generated, nearest_k=K),
    }


def main() -> None:
    """Correlated features like those of a network: not negative, some channels mostly zero."""
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(12, 12)) / 3
    real = np.maximum(rng.normal(size=(70, 12)) @ mixing + 0.4, 0).astype(np.float32)
    shifted = rng.normal(size=(55, 12)) * rng.uniform(0.6, 1.2, 12) @ mixing
    near = np.maximum(shifted + 0.5, 0).astype(np.float32)
    far = np.maximum(rng.normal(size=(55, 12)) * 0.8 + 0.9, 0).astype(np.float32)
    sets = {"real": real, "near": near, "far": far}
    wide = rng.gamma(0.5, size=(2, 40, 64)).astype(np.float32)  # fewer images than features
    sets |= {"wide_real": wide[0], "wide": wide[1] * np.float32(1.2)}
    values = {
        f"{name}.{key}": value
        for name, reference in (("near", real), ("far", real), ("wide", sets["wide_real"]))
        for key, value in measured(reference, sets[name]).items()
    }
    np.savez_compressed(Path(__file__).with_name("quality.npz"), **sets, **values)
    for key, value in values.items():
        print(key, value)


if __name__ == "__main__":
    main()
