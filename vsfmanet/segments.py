"""Which frames one run of the network reads, and which it returns; pure arithmetic.

A clip is cut into segments on a fixed grid: segment k is frames kL ... (k+1)L - 1, whichever frame was requested first.
Previews, ranges, chunks and resumed jobs therefore run the same windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vsfmanet.settings import MAX_SEGMENT

MAX_FRAMES = 2**31 - 2**12
"""Longest clip. VapourSynth counts frames in 31 bits, and the padding of the last window must fit as well."""

_USUAL_LENGTH = 8
_SEGMENT_BYTES = 384 * 2**20  # of restored fp32 RGB; up to three segments are held at once


def default_length(width: int, height: int, *, devices: int = 1) -> int:
    """Return the segment length for restored frames of `width` x `height` pixels: 8, or as many as fit 384 MiB.

    The length has no effect on pixels. Longer segments save context frames when segments are requested out of order.
    Several devices take segments in turn, so that every segment needs its context; then segments are twice as long.
    """
    frame_bytes = width * height * 3 * 4
    length = max(1, min(_USUAL_LENGTH, _SEGMENT_BYTES // frame_bytes))
    return length if devices == 1 else 2 * length


def scene_around(frame: int, first: int, last: int, starts_scene: Callable[[int], bool]) -> range:
    """Return the frames of the scene of `frame` among frames `first` ... `last`, which include it.

    Args:
        frame: Number of a frame.
        first: Number of the first frame to consider.
        last: Number of the last frame to consider.
        starts_scene: Whether a frame starts a scene; called with `first` + 1 ... `last` at most.
    """
    start = stop = frame
    while start > first and not starts_scene(start):
        start -= 1
    while stop < last and not starts_scene(stop + 1):
        stop += 1
    return range(start, stop + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Frames of a clip that the pixels of a restored frame depend on, without regard to cuts."""

    before: int
    """Frames before a frame, or before the last multiple of `period`."""
    after: int
    """Frames after a frame."""
    period: int = 1
    """Frames after which a state that is carried from frame to frame is rebuilt; 1 without such a state."""

    def of(self, frame: int) -> tuple[int, int]:
        """Return the first and last frame that `frame` depends on; they may lie outside the clip."""
        return frame - frame % self.period - self.before, frame + self.after

    @property
    def furthest(self) -> int:
        """Largest number of frames before a frame that it depends on."""
        return self.before + self.period - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentGrid:
    """The segments of a clip, and how VapourSynth lays out their windows.

    The clip is padded with repeats of its first and last frame until every window has the same shape. Slot i is then
    the clip of the i-th frames of all windows: it starts at frame i of the padded clip and takes every `length`-th.
    """

    num_frames: int
    """Frames of the clip, 1 ... MAX_FRAMES."""
    length: int
    """Frames that a segment returns, 1 ... `MAX_SEGMENT`; the last one may return fewer."""
    reach: Reach
    """Frames that a restored frame depends on."""

    def __post_init__(self) -> None:
        assert 1 <= self.num_frames <= MAX_FRAMES
        assert 1 <= self.length <= MAX_SEGMENT
        assert min(self.reach.before, self.reach.after, self.reach.period - 1) >= 0
        assert self.slots < 2**12

    @property
    def count(self) -> int:
        """Number of segments of the clip."""
        return -(-self.num_frames // self.length)

    @property
    def slots(self) -> int:
        """Number of frames of a window, including those outside the clip."""
        return self.reach.furthest + self.length + self.reach.after

    @property
    def padding(self) -> tuple[int, int]:
        """Number of repeats of the clip's first frame, and of its last one."""
        return self.reach.furthest, self.count * self.length - self.num_frames + self.reach.after

    def bounds(self, segment: int) -> tuple[int, int]:
        """Return the first frame of `segment`, and the frame after its last."""
        first = segment * self.length
        return first, min(first + self.length, self.num_frames)

    def window(self, segment: int) -> range:
        """Return the frames of the clip in the window of `segment`."""
        first = segment * self.length
        return range(max(0, first - self.reach.furthest), min(self.num_frames, first + self.length + self.reach.after))

    def slot(self, segment: int, frame: int) -> int:
        """Return the number of the slot of `frame` in the window of `segment`."""
        assert frame in self.window(segment)
        return frame - (segment * self.length - self.reach.furthest)
