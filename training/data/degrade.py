"""What cameras and files do to a frame after the blur: noise, sharpening, chroma subsampling, compression.

Restoration learns to undo these too; the degradation network does not, since no kernel can make noise: its target stays
the blurred frame before them (`Batch.clean`). All is done at LR, on whole clips, and depends on the generator alone.
"""

from fractions import Fraction

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsfmanet.errors import OutputError

NOISE_CHANCE, HALO_CHANCE, SUBSAMPLING_CHANCE, COMPRESSION_CHANCE = 0.7, 0.3, 0.3, 0.7

NOISE_SIGMA = (0.5, 10.0)
"""Standard deviation at middle grey, in 8-bit code values."""

HALO_AMOUNT, HALO_SIGMA = (0.2, 0.8), (0.6, 1.5)
"""Strength and width (LR pixels) of the unsharp mask that cameras and broadcasters apply."""

JPEG_QUALITY = (40, 95)
CODECS = {"libx264": ("h264", (18, 38)), "libx265": ("hevc", (20, 40))}
"""Encoder to its decoder and the range of its constant rate factor: from invisible to plainly damaged."""

CODED_SIDE = 64
"""Least side of a coded picture; smaller ones are padded, since x265 refuses them."""

FRAME_RATE = 24
X264_OPTIONS = "no-mbtree=1"
"""With macroblock trees, small noisy pictures came out differently once in five runs."""

X265_OPTIONS = "log-level=none:pools=none:frame-threads=1:ctu=32"
"""One thread, and blocks of 32: with blocks of 64, pictures of 64 pixels came out differently once in ten runs."""

JPEG_SAMPLINGS = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


def degrade_clips(generator: np.random.Generator, clips: Tensor, part: float) -> Tensor:
    """Degrade a part of some clips.

    Args:
        generator: Source of all randomness; not used at all if `part` is 0.
        clips: (B, T, 3, h, w) 8-bit code values.
        part: Chance of each clip, in [0, 1].

    Returns:
        (B, T, 3, h, w) 8-bit code values on the same device; `clips` itself if `part` is 0.
    """
    if not part:
        return clips
    done = [
        torch.from_numpy(degrade_clip(generator, clip.cpu().numpy())).to(clips.device)
        if generator.random() < part
        else clip
        for clip in clips
    ]
    return torch.stack(done)


def degrade_clip(generator: np.random.Generator, clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put a clip (T, 3, h, w), 8-bit RGB, through a random camera and a random file; same shape."""
    noisy, haloed, subsampled, compressed = generator.random(4) < (
        NOISE_CHANCE,
        HALO_CHANCE,
        SUBSAMPLING_CHANCE,
        COMPRESSION_CHANCE,
    )
    if noisy:
        clip = add_noise(generator, clip, generator.uniform(*NOISE_SIGMA), shot=generator.uniform(0, 1))
    if haloed:
        clip = add_halos(clip, generator.uniform(*HALO_AMOUNT), generator.uniform(*HALO_SIGMA))
    if subsampled:
        clip = subsample_chroma(clip)
    if compressed:
        kind = str(generator.choice(["jpeg", *CODECS], p=(0.3, 0.5, 0.2)))
        if kind == "jpeg":
            quality = int(generator.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
            clip = code_jpeg(clip, quality, JPEG_SAMPLINGS[int(generator.integers(2))])
        else:
            low, high = CODECS[kind][1]
            clip = code_video(clip, kind, int(generator.integers(low, high + 1)))
    return clip


def add_noise(generator: np.random.Generator, clip: NDArray[np.uint8], sigma: float, shot: float) -> NDArray[np.uint8]:
    """Add sensor noise: normal, new in every frame, of a variance that rises with the signal.

    Args:
        generator: Source of all randomness.
        clip: (T, 3, h, w).
        sigma: Standard deviation at middle grey, in code values.
        shot: Part of the variance there that is due to light, in [0, 1]; the rest is the same everywhere.
    """
    codes = clip.astype(np.float32)
    variance = sigma**2 * (1 - shot + shot * codes / 127.5)
    noise = generator.standard_normal(clip.shape, dtype=np.float32) * np.sqrt(variance)
    return _to_bytes(codes + noise)


def add_halos(clip: NDArray[np.uint8], amount: float, sigma: float) -> NDArray[np.uint8]:
    """Sharpen (T, 3, h, w) by an unsharp mask of `sigma` pixels and strength `amount`."""
    sharpened = [
        plane + amount * (plane - cv2.GaussianBlur(plane, (0, 0), sigma))
        for plane in clip.reshape(-1, *clip.shape[2:]).astype(np.float32)
    ]
    return _to_bytes(np.stack(sharpened)).reshape(clip.shape)


def subsample_chroma(clip: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Take (T, 3, h, w) to YUV 4:2:0 and back."""
    return _cropped([frame.reformat(format="yuv420p") for frame in _to_frames(clip)], clip.shape)


def code_jpeg(clip: NDArray[np.uint8], quality: int, sampling: int) -> NDArray[np.uint8]:
    """Compress each frame of (T, 3, h, w) by itself; `sampling` is one of `JPEG_SAMPLINGS`."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    decoded = []
    for frame in clip:
        _, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)), options)
        decoded.append(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)[..., ::-1].transpose(2, 0, 1))
    return np.stack(decoded)


def code_video(clip: NDArray[np.uint8], encoder: str, rate_factor: int) -> NDArray[np.uint8]:
    """Compress (T, 3, h, w) as a film, 4:2:0.

    Args:
        clip: 8-bit RGB.
        encoder: A key of `CODECS`.
        rate_factor: Its constant rate factor; more is smaller and worse.

    Raises:
        OutputError: This build of PyAV lacks the encoder.
    """
    frames = _to_frames(clip)
    try:
        coder = av.CodecContext.create(encoder, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise OutputError(f"degrade: {encoder} is needed, PyAV lacks it; install PyAV's wheel from PyPI") from error
    assert isinstance(coder, av.VideoCodecContext)
    coder.width, coder.height, coder.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
    coder.time_base, coder.framerate = Fraction(1, FRAME_RATE), Fraction(FRAME_RATE)
    # One thread: the bits, and so the pixels, would otherwise depend on the number of cores.
    coder.options = {"crf": str(rate_factor), "preset": "veryfast", "threads": "1"}
    coder.options |= {"x264-params": X264_OPTIONS} if encoder == "libx264" else {"x265-params": X265_OPTIONS}
    packets = []
    for index, frame in enumerate(frames):
        picture = frame.reformat(format="yuv420p")
        picture.pts = index
        packets += coder.encode(picture)
    packets += coder.encode(None)
    decoder = av.CodecContext.create(CODECS[encoder][0], "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoded = [frame for packet in packets for frame in decoder.decode(packet)] + list(decoder.decode(None))
    return _cropped(sorted(decoded, key=lambda frame: frame.pts or 0), clip.shape)


def _to_frames(clip: NDArray[np.uint8]) -> list[av.VideoFrame]:
    """(T, 3, h, w) as RGB frames, padded to even sides of `CODED_SIDE` or more by repeating the border."""
    height, width = clip.shape[2:]
    below, right = (max(CODED_SIDE, side + side % 2) - side for side in (height, width))
    padded = np.pad(clip, ((0, 0), (0, 0), (0, below), (0, right)), mode="edge").transpose(0, 2, 3, 1)
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in padded]


def _cropped(frames: list[av.VideoFrame], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Frames as RGB (T, 3, h, w), without what `_to_frames` added."""
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    assert len(pictures) == shape[0]
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)[..., : shape[2], : shape[3]])


def _to_bytes(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round code values to 8 bits."""
    return codes.round().clip(0, 255).astype(np.uint8)
