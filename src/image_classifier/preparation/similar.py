"""Near-duplicates across splits: re-encoded, resized or shifted copies, which no hash of pixels finds.

Each image is looked up among the images of the splits before it by a coarse gray thumbnail, and its nearest
neighbors are compared in detail: the largest correlation of the middle of one thumbnail with any window of the other.
How alike a copy is depends on the data, so the thresholds are calibrated on copies that are made of the images
themselves.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

COARSE, MEDIUM, FINE = 10, 40, 80  # pixels, height and width of the thumbnails
SHIFT = 4  # pixels of MEDIUM: the largest shift that is found, a tenth of the image
NEIGHBORS = 4  # whose medium thumbnails are compared
SAMPLED = 200  # images that the thresholds are calibrated on
LEAST = 0.9  # similarity of a near-duplicate, however unlike their originals copies are
MISSED = 0.01  # share of the copies that may fall below each threshold
CHUNK = 256  # images at a time
PAIRS = 64  # that are compared at a time, at full size
SAMPLED_BYTES = 2**27  # of the sample, at most
SAME = 0.9999  # similarity from which on two images of one split are copies themselves


@dataclass(frozen=True)
class Pair:
    """Two images of two splits that look alike: each a split and a number in it, and their correlation."""

    split: str
    number: int
    other_split: str
    other_number: int
    similarity: float


def pairs(splits: dict[str, list[Tensor]]) -> tuple[list[Pair], float, float]:
    """The near-duplicate in an earlier split of each image that has one, the least similarity of these, and the share
    of copies that reach it.

    `splits` are runs of uint8 [N, size, size, 3], of which only a chunk at a time is read. An image is found once,
    with its nearest neighbor.
    """
    names = list(splits)
    if not splits[names[0]]:
        return [], 1.0, 1.0
    known = torch.cat([coarse for coarse, _ in _thumbnails(splits[names[0]])])
    starts = [0]
    limits = _calibrated(splits[names[0]], known)
    found = []
    for name in names[1:]:
        starts.append(len(known))
        own, number = [], 0
        for coarse, images in _thumbnails(splits[name]):
            own.append(coarse)
            nearest = (coarse @ known.T).topk(min(NEIGHBORS, len(known)))
            rows, ranks = (nearest.values >= limits.coarse).nonzero(as_tuple=True)
            others = nearest.indices[rows, ranks]
            similar = torch.cat(
                [
                    _similarity(images[part], _gather(splits, starts, theirs), limits.medium)
                    for part, theirs in zip(rows.split(PAIRS), others.split(PAIRS), strict=True)
                ]
            )
            best: dict[int, tuple[float, int]] = {}
            for row, other, similarity in zip(rows.tolist(), others.tolist(), similar.tolist(), strict=True):
                if similarity >= limits.fine:  # three digits: later ones depend on the processor
                    best[row] = max(best.get(row, (-1.0, 0)), (round(similarity, 3), other))
            for row, (similarity, other) in sorted(best.items()):
                split = int(np.searchsorted(starts, other, side="right")) - 1
                found.append(Pair(name, number + row, names[split], other - starts[split], similarity))
            number += len(images)
        if name != names[-1]:
            known = torch.cat([known, *own])
    return found, limits.fine, limits.caught


def _thumbnails(runs: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of a split: unit vectors float32 [N, 100] of the coarse thumbnails, and the images."""
    for run in runs:
        for images in run.split(CHUNK):
            yield _coarse(images), images


def _gray(images: Tensor, size: int) -> Tensor:
    """Gray thumbnails, float32 [N, size, size]."""
    # In integers this takes a tenth of the time.
    return F.interpolate(images.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True).float().mean(1)


def _coarse(images: Tensor) -> Tensor:
    flat = _gray(images, COARSE).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def _similarity(ones: Tensor, others: Tensor, least: float = -1.0) -> Tensor:
    """How alike the two images of each pair are, where they lie upon each other best: a correlation, float32 [N].

    It is 0 where the medium thumbnails are less alike than `least`, and where an image is flat.
    """
    similar = [torch.empty(0)]
    for one, other in zip(ones.split(CHUNK), others.split(CHUNK), strict=True):
        medium, down, right = _best_shift(_gray(one, MEDIUM), _gray(other, MEDIUM), SHIFT)
        fine = torch.zeros(len(one))
        near = (medium >= least).nonzero()[:, 0]
        # Twice the pixels of the medium thumbnails: the best shift is known but for one pixel.
        margin, side, slack = 2 * SHIFT, FINE - 4 * SHIFT, 2
        middle = _gray(one[near], FINE)[:, margin : margin + side, margin : margin + side]
        windows = F.pad(_gray(other[near], FINE)[:, None], (slack,) * 4, mode="replicate")[:, 0]
        windows = windows.unfold(1, side + 2 * slack, 1).unfold(2, side + 2 * slack, 1)
        windows = windows[torch.arange(len(near)), margin + 2 * down[near], margin + 2 * right[near]]
        fine[near] = _best_shift(F.pad(middle, (slack,) * 4), windows, slack)[0]
        similar.append(fine)
    return torch.cat(similar)


def _best_shift(ones: Tensor, others: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest correlation of the middle of one image, float32 [N, side, side], with windows of the other.

    Returns it and its shift, down and to the right, int64 [N], at most `most` either way.
    """
    side = ones.shape[-1] - 2 * most
    middle = ones[:, most : most + side, most : most + side]
    middle = middle - middle.mean((1, 2), keepdim=True)
    others = others - others.mean((1, 2), keepdim=True)  # or the difference of squares below would lose digits
    if not len(ones):
        return torch.empty(0), *torch.empty(2, 0, dtype=torch.int64)
    products = F.conv2d(others[None], middle[:, None], groups=len(ones))[0]
    means, squares = (F.avg_pool2d(values[None], side, 1)[0] for values in (others, others**2))
    norms = (squares - means**2).clamp(min=0).sqrt() * side * middle.flatten(1).norm(dim=1)[:, None, None]
    best = (products / norms.clamp(min=side)).flatten(1).max(1)
    places = 2 * most + 1
    return best.values.clamp(max=1), best.indices // places - most, best.indices % places - most


@dataclass(frozen=True)
class Limits:
    """The least correlation of near-duplicates at each size of thumbnail, and the share of copies above the last."""

    coarse: float
    medium: float
    fine: float
    caught: float


def _calibrated(runs: list[Tensor], known: Tensor) -> Limits:
    """The limits that all but 1 % of the copies of a sample reach.

    At least half of the sample's nearest neighbors in their own split lie below the last, even where all images of a
    source look alike; copies within the split do not count.
    """
    random = np.random.default_rng(0)
    most = min(SAMPLED, max(1, SAMPLED_BYTES // runs[0][0].nbytes))
    numbers = torch.from_numpy(np.sort(random.permutation(len(known))[:most]))
    images = _gather({"": runs}, [0], numbers)
    copies = torch.stack([_copy(image, random) for image in images])
    correlations = known[numbers] @ known.T
    coarse = (_coarse(copies) * known[numbers]).sum(1)
    medium = _best_shift(_gray(copies, MEDIUM), _gray(images, MEDIUM), SHIFT)[0]
    correlations[torch.arange(len(numbers)), numbers] = -1
    neighbors = _similarity(images, _gather({"": runs}, [0], correlations.argmax(1)))
    similar = _similarity(copies, images)
    others = neighbors[neighbors < SAME]
    alike = float(others.median()) if len(others) else LEAST
    fine = round(max(LEAST, float(similar.quantile(MISSED)), alike), 4)
    caught = (similar >= fine).float().mean()
    return Limits(float(coarse.quantile(MISSED)), float(medium.quantile(MISSED)), fine, float(caught))


def _copy(image: Tensor, random: np.random.Generator) -> Tensor:
    """What becomes of an image on its way through other programs: halved and enlarged, shifted, saved as JPEG."""
    size = image.shape[0]
    pixels = Image.fromarray(image.numpy())
    small = pixels.resize((max(1, size // 2),) * 2, Image.Resampling.BICUBIC).resize((size, size))
    most = size * SHIFT // MEDIUM // 4
    down, right = random.integers(-most, most + 1, 2)
    shifted = np.pad(np.asarray(small), ((most, most), (most, most), (0, 0)), mode="edge")
    shifted = shifted[most + down : most + down + size, most + right : most + right + size]
    file = io.BytesIO()
    Image.fromarray(shifted).save(file, "JPEG", quality=60)
    return torch.from_numpy(np.array(Image.open(file)))


def _gather(splits: dict[str, list[Tensor]], starts: list[int], numbers: Tensor) -> Tensor:
    """The images with these numbers, counted through the splits that begin at `starts`."""
    runs = [run for split in list(splits.values())[: len(starts)] for run in split]
    ends = np.cumsum([len(run) for run in runs])
    places = np.searchsorted(ends, numbers.numpy(), side="right")
    rows = [runs[place][int(number) - int(ends[place])] for place, number in zip(places, numbers, strict=True)]
    return torch.stack(rows) if rows else runs[0][:0]
