"""Metrics of a set of samples against a set of references, from their features."""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch

from evaluations.distances import CHUNK, Score, density_coverage, frechet_distance, kernel_distance, merged

SPLITS = 10  # of the inception score, torch-fidelity's
MANIFOLD_NEIGHBOURS = 3  # torch-fidelity's, and the paper's


@dataclass(frozen=True)
class Sets:
    """Reference and samples as a metric needs them; what several metrics compute of them is computed once.

    Each is a list: of the features alone, float32 [N, D], or of Gaussians, that of the set or those of all its turns.
    """

    reference: list[Any]
    sample: list[Any]

    @cached_property
    def precision_recall(self) -> tuple[float, float]:
        """By torch-fidelity; of 4 images or more."""
        from torch_fidelity.metric_prc import calculate_precision_recall_part

        sides = (torch.from_numpy(features[0]) for features in (self.sample, self.reference))
        return calculate_precision_recall_part(*sides, MANIFOLD_NEIGHBOURS, CHUNK)

    @cached_property
    def density_coverage(self) -> tuple[float, float]:
        return density_coverage(self.reference[0], self.sample[0])

    @cached_property
    def between_turns(self) -> list[float]:
        """Fréchet distances of all pairs of turned copies of the samples."""
        return [frechet_distance(one, other) for one, other in combinations(self.sample, 2)]


def fid(sets: Sets) -> Score:
    """Fréchet Inception distance: ‖μ1 − μ2‖² + tr (Σ1 + Σ2 − 2 (Σ1 Σ2)^½) of the 2048 pooled features of InceptionV3.

    In [0, ∞), lower is better; biased upwards for few images. Heusel et al. 2017; features of torch-fidelity.
    """
    return Score(frechet_distance(sets.reference[0], sets.sample[0]))


def sfid(sets: Sets) -> Score:
    """FID with 2023 spatial features of InceptionV3: the first 7 channels of mixed_6/conv, 17 x 17.

    In [0, ∞), lower is better; biased upwards for few images. Nash et al. 2021, as in the evaluator of ADM (Dhariwal &
    Nichol 2021).
    """
    return fid(sets)


def kid(sets: Sets) -> Score:
    """Kernel Inception distance: unbiased MMD² with the kernel (x·y / 2048 + 1)³, mean over 100 subsets of 1000 images.

    In (-∞, ∞), around 0 for equal distributions, lower is better; unbiased for any number of images. Bińkowski et al.
    2018; subsets and seed of torch-fidelity, of all images where there are fewer than 1000.
    """
    return kernel_distance(sets.reference[0], sets.sample[0])


def inception_score(sets: Sets) -> Score:
    """exp of the mean KL divergence of InceptionV3's class probabilities from their mean; mean over 10 parts.

    In [1, 1008], higher is better; needs no reference, and says nothing of data that is not like ImageNet. Salimans et
    al. 2016; logits without bias, shuffle and parts of torch-fidelity.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(torch.from_numpy(sets.sample[0]), SPLITS)
    return Score(found["inception_score_mean"], found["inception_score_std"])


def precision(sets: Sets) -> Score:
    """Share of samples that lie within reach of a reference: the distance to that one's 3rd nearest other reference.

    In [0, 1], higher is better: fidelity. Kynkäänniemi et al. 2019, on 2048 InceptionV3 features, by torch-fidelity.
    The precision of masks is mask_precision.
    """
    return Score(sets.precision_recall[0])


def recall(sets: Sets) -> Score:
    """Share of references that lie within reach of a sample: the distance to that one's 3rd nearest other sample.

    In [0, 1], higher is better: variety. Kynkäänniemi et al. 2019, on 2048 InceptionV3 features, by torch-fidelity.
    The recall of masks is mask_recall.
    """
    return Score(sets.precision_recall[1])


def density(sets: Sets) -> Score:
    """Mean number of references that a sample lies within reach of (5th nearest other reference), over 5.

    In [0, ∞), about 1 for equal distributions, higher is better: fidelity, robust against outliers among the
    references. Naeem et al. 2020, on 2048 InceptionV3 features.
    """
    return Score(sets.density_coverage[0])


def coverage(sets: Sets) -> Score:
    """Share of references with a sample within their reach, the distance to their 5th nearest other reference.

    In [0, 1], higher is better: variety. Naeem et al. 2020, on 2048 InceptionV3 features.
    """
    return Score(sets.density_coverage[1])


def fd_dinov2(sets: Sets) -> Score:
    """Fréchet distance of the 1024 features of DINOv2's ViT-L/14.

    In [0, ∞), lower is better; biased upwards for few images. Stein et al. 2023, who resize bicubically; here as
    torch-fidelity does.
    """
    return fid(sets)


def inv_fid_mean(sets: Sets) -> Score:
    """Inv-FID, mean over all pairs of elements g, h of --group of FID(g·samples, h·samples).

    In [0, ∞), lower is better, 0 for a set closed under the group; needs no reference. After Lu, Szabados, Yu 2024
    (SPDM).
    """
    return Score(float(np.mean(sets.between_turns)))


def inv_fid_max(sets: Sets) -> Score:
    """Inv-FID, maximum over all pairs of elements g, h of --group of FID(g·samples, h·samples).

    In [0, ∞), lower is better, 0 for a set closed under the group; needs no reference. After Lu, Szabados, Yu 2024
    (SPDM).
    """
    return Score(max(sets.between_turns))


def inv_fid_spread(sets: Sets) -> Score:
    """Inv-FID, maximum minus minimum over the elements g of --group of FID(g·samples, reference).

    In [0, ∞), lower is better, 0 for a set closed under the group. After Lu, Szabados, Yu 2024 (SPDM).
    """
    found = [frechet_distance(sets.reference[0], turned) for turned in sets.sample]
    return Score(max(found) - min(found))


def fid_augmented(sets: Sets) -> Score:
    """FID against the reference together with its copies under all elements of --group.

    In [0, ∞), lower is better; biased upwards for few images. The protocol of Lu, Szabados, Yu 2024 (SPDM).
    """
    return Score(frechet_distance(merged(sets.reference), sets.sample[0]))
