"""Packed segments: each run of the restorer reads one window of frames and returns the frames of one segment.

Frame k of one node, the host, is segment k. VapourSynth gathers the segment's window through one clip for each place
in the window (a slot), and the restored frames travel as properties of the host's frame.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence

import vapoursynth as vs
from torch import Tensor

from vsfmanet.clips.colour import ColourPath, colour_path
from vsfmanet.clips.exposure import CONFIDENCE, EXPOSURE, SOURCE
from vsfmanet.clips.nodes import keep_frames
from vsfmanet.clips.scenes import SCENE_START, starts_scene
from vsfmanet.errors import IncompleteError
from vsfmanet.restorer import FrameRestorer
from vsfmanet.segments import SegmentGrid, scene_around
from vsfmanet.streams import Restored

_RESTORED = "FMANetRestored"

_log = logging.getLogger(__name__)


def restore_windows(
    source: vs.VideoNode, restorers: Sequence[FrameRestorer], grid: SegmentGrid, target: vs.VideoFormat
) -> vs.VideoNode:
    """Restore a clip window by window; see `vsfmanet.clips` for the properties that its frames carry.

    Args:
        source: Clip with colour tagged, scenes marked, and exposures where they are known.
        restorers: Of one model; they restore segments in turn, and are closed when the result is released.
        grid: Segments of the clip.
        target: Format of the result.
    """
    scale = restorers[0].scale
    width, height = source.width * scale, source.height * scale
    hosts = []
    for place, restorer in enumerate(restorers):
        colour = colour_path(source.format, target, width, height, restorer.colour_transfers)
        run = _SegmentRun(restorer, grid, colour)
        if place < grid.count:  # else the clip is too short for this restorer, and its run closes it at once
            hosts.append(_host(colour.readable(source), grid, run, place, len(restorers)))
    host = vs.core.std.Interleave(hosts, modify_duration=False) if len(hosts) > 1 else hosts[0]
    like = source.std.BlankClip(format=colour.written.id, width=width, height=height, keep=True)
    return colour.finished(_unpacked(host, grid, like))


def _host(source: vs.VideoNode, grid: SegmentGrid, run: _SegmentRun, place: int, stride: int) -> vs.VideoNode:
    """Build the node whose frame k holds the restored frames of segment `place` + k * `stride`."""
    count = len(range(place, grid.count, stride))
    before, after = grid.padding
    edges = [0] * before + [grid.num_frames - 1] * after
    padded = source.std.DuplicateFrames(edges) if edges else source

    def slot(i: int) -> vs.VideoNode:
        frames_from_i = padded[place * grid.length + i :]
        if grid.length * stride > 1:  # not a slice, which would multiply the durations that restored frames inherit
            frames_from_i = frames_from_i.std.SelectEvery(grid.length * stride, 0, modify_duration=False)
        return frames_from_i[:count]

    def pack(n: int, f: vs.VideoFrame | list[vs.VideoFrame]) -> vs.VideoFrame:
        return run.packed(place + n * stride, f if isinstance(f, list) else [f])

    blank = vs.core.std.BlankClip(width=1, height=1, format=vs.GRAY8, length=count, keep=True)
    return keep_frames(blank.std.ModifyFrame([slot(i) for i in range(grid.slots)], pack), 3)


def _unpacked(host: vs.VideoNode, grid: SegmentGrid, like: vs.VideoNode) -> vs.VideoNode:
    """Lay out the restored frames of all segments as a clip of the length, rate, format and size of `like`.

    `PropToClip` would do the same, but asks for a frame, and so for a whole window, while the script is being loaded.
    """

    def unpack(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        return f.props[f"{_RESTORED}{n % grid.length}"]

    spread = vs.core.std.Interleave([host] * grid.length, modify_duration=False)[: grid.num_frames]
    restored = like.std.ModifyFrame(spread, unpack)
    restored.std.SetVideoCache(mode=0)  # the host's cache holds the same frames
    return restored


class _Window:
    """The frames of one window, as a restorer reads them (a `FrameSource`)."""

    def __init__(self, slots: Sequence[vs.VideoFrame], segment: int, grid: SegmentGrid, colour: ColourPath) -> None:
        self.num_frames = grid.num_frames
        self._slots, self._segment, self._grid, self._colour = slots, segment, grid, colour

    def frame(self, n: int) -> Tensor:
        return self._colour.read(self.slot(n), n)

    def exposure(self, n: int) -> float | None:
        return self.slot(n).props.get(EXPOSURE)

    def starts_scene(self, n: int) -> bool:
        return starts_scene(self.slot(n))

    def encode(self, n: int, rgb: Tensor) -> Tensor:
        """Convert restored frame `n`, (3, H, W) RGB on the device, to what is copied to the host (`Encode`)."""
        return self._colour.encode(rgb, self.slot(n), n)

    def reach(self, n: int) -> range:
        """Frames that the pixels of frame `n` depend on, all of its scene."""
        first, last = self._grid.reach.of(n)
        return scene_around(n, max(0, first), min(self.num_frames - 1, last), self.starts_scene)

    def slot(self, n: int) -> vs.VideoFrame:
        """Frame `n` of the clip."""
        return self._slots[self._grid.slot(self._segment, n)]


class _SegmentRun:
    """Makes the host's frames: one pixel each, with the restored frames of a segment as properties."""

    _MEMO = 2
    """Host frames kept beside VapourSynth's cache, which drops frames when memory is short."""

    def __init__(self, restorer: FrameRestorer, grid: SegmentGrid, colour: ColourPath) -> None:
        self._restorer, self._grid, self._colour = restorer, grid, colour
        self._exact: FrameRestorer | None = None
        self._memo: dict[int, vs.VideoFrame] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, restorer.close)

    def packed(self, segment: int, slots: list[vs.VideoFrame]) -> vs.VideoFrame:
        """Restore a segment, whose window is `slots`, into a frame of the host; kept ones are returned as they are."""
        with self._lock:
            if segment not in self._memo:
                packed = self._packed(segment, slots)
                if len(self._memo) == self._MEMO:
                    # The earliest, not the oldest: now and then VapourSynth takes a later segment first, and asks for
                    # its frames when more have come since than its cache holds.
                    del self._memo[min(self._memo)]
                self._memo[segment] = packed
            return self._memo[segment]

    def _packed(self, segment: int, slots: list[vs.VideoFrame]) -> vs.VideoFrame:
        window = _Window(slots, segment, self._grid, self._colour)
        first, stop = self._grid.bounds(segment)
        restored = self._restorer.restore(window, first, stop, window.encode)
        assert [result.index for result in restored] == list(range(first, stop))
        packed = vs.core.create_video_frame(vs.core.get_video_format(vs.GRAY8), 1, 1)
        for result in restored:
            packed.props[f"{_RESTORED}{result.index - first}"] = self._frame(window, result)
        return packed

    def _frame(self, window: _Window, restored: Restored) -> vs.VideoFrame:
        """Write restored frame n with the properties of its source and those of the filter."""
        n = restored.index
        if not self._colour.is_finite(restored.frame):
            restored = self._again(window, n)
        frame = self._colour.write(restored.frame, window.slot(n), n)
        frame.props.pop(SCENE_START, None)
        if EXPOSURE not in frame.props and restored.exposure is not None:
            frame.props.update({EXPOSURE: restored.exposure, SOURCE: "network", CONFIDENCE: restored.confidence})
        reach = window.reach(n)
        frame.props.update(
            FMANetModel=self._restorer.name, FMANetWindowStart=reach.start, FMANetWindowEnd=reach.stop - 1
        )
        return frame

    def _again(self, window: _Window, n: int) -> Restored:
        """Restore frame `n` in fp32: alone, so that its pixels do not depend on its segment.

        Raises:
            IncompleteError: The result is not finite either.
        """
        if self._exact is None:
            self._exact = self._restorer.exact()
            if self._exact is not None:
                _log.warning(
                    "NaN or infinity in frame %d; vsfmanet computes it and later frames like it again in fp32", n
                )
                weakref.finalize(self, self._exact.close)
        if self._exact is not None:
            [restored] = self._exact.restore(window, n, n + 1, window.encode)
            if self._colour.is_finite(restored.frame):
                return restored
        raise IncompleteError(
            f"finite results are needed, got NaN or infinity in frame {n}, in fp32 too; look at that frame of the "
            "source, and report it"
        )
