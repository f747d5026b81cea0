"""The augmentations of ATCON: ranges of their draws, and transformed annotations."""

from dataclasses import replace

import numpy as np
import pytest

from tests.datasets.test_transforms import run, scene


def test_atcon_voc() -> None:
    """Crops of 8 to 100 % of the area at aspects from 3/4 to 4/3, flipped half of the time, with colour jitter."""
    raw = scene(200, 200, x=100, y=100, radius=60)
    colour = replace(raw, image=(raw.image * np.array([1.0, 0.5, 0.25])).astype(np.uint8))
    corner = np.array([[60, 60, 1], [140, 60, 1], [60, 140, 1]], float)
    outs = [run(replace(colour, keypoints=corner), "atcon_voc", seed) for seed in range(120)]
    areas, aspects, mirrored = [], [], []
    for out in outs:
        assert out.mask is not None and out.keypoints is not None and out.boxes is not None
        bright = out.image[0] > (out.image[0].min() + out.image[0].max()) / 2
        if 0.02 < float(out.mask.float().mean()) < 0.98:
            assert float((bright == out.mask).float().mean()) > 0.97, "the white disc is where the mask says"
        if out.keypoints[:, 2].all():
            a, b, c = out.keypoints[:, :2]
            width, height = (80 * 96 / float((one - a).norm()) for one in (b, c))
            areas.append(width * height / 200**2)
            aspects.append(width / height)
            mirrored.append(bool(b[0] < a[0]))
            edges = sorted((a[0].item(), b[0].item()))
            margin = 20 * 96 / width  # of the box, left and right of the key points
            left, right = max(0, edges[0] - margin), min(96, edges[1] + margin)
            assert (out.boxes[0][0].item(), out.boxes[0][2].item()) == pytest.approx((left, right), abs=1.5)
    assert len(areas) > 20 and max(areas) < 1.03 and 0.7 < min(aspects) < 0.9 and 1.1 < max(aspects) < 1.4
    assert 0.25 < np.mean(mirrored) < 0.75
    lightest = [float(out.image.max()) for out in outs]
    assert min(lightest) < 0.75 and np.std(lightest) > 0.05, "jittered"
    covered = [float(out.mask.float().mean()) for out in outs if out.mask is not None]
    assert max(covered) > 0.7 > 0.28 > min(covered), "the disc covers 28 % of the image"


def test_atcon_svhn() -> None:
    """Up to 10 degrees, both flips, each half of the time, at the original scale."""
    raw = replace(scene(radius=2), keypoints=np.array([[30, 48, 1], [66, 48, 1], [48, 30, 1]], float))
    turns, sideways, upside = [], [], []
    for seed in range(200):
        parts = run(raw, "atcon_svhn", seed).keypoints
        assert parts is not None and parts[:, 2].all()
        a, b, c = parts[:, :2]
        assert float((b - a).norm()) == pytest.approx(36, abs=0.01)
        across = b - a
        turns.append(np.degrees(np.arctan2(float(across[1]), abs(float(across[0])))))
        sideways.append(bool(across[0] < 0))
        upside.append(bool(c[1] > 48))
    assert -10 <= min(turns) < -8.5 and 8.5 < max(turns) <= 10
    assert 0.4 < np.mean(sideways) < 0.6 and 0.4 < np.mean(upside) < 0.6
