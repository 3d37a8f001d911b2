"""What happens to frames after the blur, against what it is said to do."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.data import degrade
from training.data.degrade import (
    JPEG_SAMPLINGS,
    add_halos,
    add_noise,
    code_jpeg,
    code_video,
    degrade_clip,
    degrade_clips,
    subsample_chroma,
)


def picture_clip(frames: int = 4, height: int = 36, width: int = 50) -> NDArray[np.uint8]:
    """A smooth coloured clip (T, 3, h, w) that moves."""
    t, y, x = np.mgrid[:frames, :height, :width].astype(np.float64)
    planes = [np.sin((x + shift - 2 * t) / 4) + np.cos((y - shift) / 6) for shift in (0, 3, 7)]
    return (127 + 50 * np.stack(planes, axis=1)).astype(np.uint8)


def error(clip: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Root mean square difference, code values."""
    return float(np.sqrt(np.mean((clip.astype(float) - other) ** 2)))


@pytest.mark.parametrize(("shot", "dark", "bright"), [(0.0, 4.0, 4.0), (1.0, 2.0, 4 * np.sqrt(1.5))])
def test_noise_has_the_spread_that_was_asked_for(shot: float, dark: float, bright: float) -> None:
    flat = np.empty((1, 3, 200, 200), dtype=np.uint8)
    for value, expected in ((31.875, dark), (191.25, bright)):
        flat[:] = round(value)
        noisy = add_noise(np.random.default_rng(0), flat, 4.0, shot=shot)
        assert np.std(noisy) == pytest.approx(expected, rel=0.03)
        assert np.mean(noisy) == pytest.approx(round(value), abs=0.1)


def test_noise_is_new_in_every_frame() -> None:
    noisy = add_noise(np.random.default_rng(0), np.full((2, 3, 20, 20), 128, np.uint8), 5.0, shot=0.5)
    assert not np.array_equal(noisy[0], noisy[1])


def test_halos_overshoot_at_edges_and_leave_flat_parts_alone() -> None:
    step = np.full((1, 3, 20, 40), 80, dtype=np.uint8)
    step[..., 20:] = 160
    sharp = add_halos(step, 0.8, 1.0)
    assert sharp[..., 20].min() > 170
    assert sharp[..., 19].max() < 70
    np.testing.assert_array_equal(sharp[..., :10], step[..., :10])


def test_subsampled_chroma_loses_colour_but_hardly_any_grey() -> None:
    grey = np.repeat(picture_clip()[:, :1], 3, axis=1)
    assert error(subsample_chroma(grey), grey) < 1.5
    stripes = np.full((1, 3, 36, 50), 128, dtype=np.uint8)
    stripes[:, 0, :, ::2], stripes[:, 2, :, ::2] = 228, 28
    assert error(subsample_chroma(stripes), stripes) > 20


def test_stronger_compression_is_worse_and_keeps_order_and_size() -> None:
    clip = picture_clip(frames=5, height=33, width=51)  # odd and small: padded within
    for encoder in ("libx264", "libx265"):
        mild, strong = code_video(clip, encoder, 18), code_video(clip, encoder, 38)
        assert mild.shape == strong.shape == clip.shape
        assert error(mild, clip) < error(strong, clip)
        for frame in range(5):
            errors = [error(mild[frame], other) for other in clip]
            assert int(np.argmin(errors)) == frame
    for sampling in JPEG_SAMPLINGS:
        assert error(code_jpeg(clip, 95, sampling), clip) < error(code_jpeg(clip, 40, sampling), clip)


def test_degradation_is_determined_by_its_seed_and_takes_its_part() -> None:
    clips = torch.from_numpy(np.stack([picture_clip()] * 12))
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    assert degrade_clips(generator, clips, 0.0) is clips
    assert generator.bit_generator.state == state  # nothing was drawn: batches stay as they were
    first, again = (degrade_clips(np.random.default_rng(3), clips, 0.5) for _ in range(2))
    assert torch.equal(first, again)
    changed = sum(not torch.equal(done, clip) for done, clip in zip(first, clips, strict=True))
    assert 2 <= changed <= 9


def test_every_kind_of_damage_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    for name in ("add_noise", "add_halos", "subsample_chroma", "code_jpeg", "code_video"):

        def spy(*arguments: object, name: str = name, **more: object) -> object:
            seen.add(str(arguments[1]) if name == "code_video" else name)
            return next(item for item in arguments if isinstance(item, np.ndarray))

        monkeypatch.setattr(degrade, name, spy)
    for seed in range(30):
        degrade_clip(np.random.default_rng(seed), picture_clip())
    assert seen == {"add_noise", "add_halos", "subsample_chroma", "code_jpeg", "libx264", "libx265"}
