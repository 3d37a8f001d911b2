"""The VapourSynth side: each fact about a frame is found by one node, written as properties, and read by later nodes.

`vsfmanet.restore` chains the nodes below. Frame n of each depends on frames near n of the clip alone, so the order of
requests has no effect, and none requests a frame in its callback or while it is being built.

    colour      checks the frame; writes `_Matrix`, `_Range` and `_ChromaLocation`
    scenes      whether the frame starts a scene, as `FMANetSceneStart`
    exposure    `FMANetExposure`, `FMANetExposureSource` and `FMANetExposureConfidence`, where argument, property or
                telemetry know the exposure
    estimate    the same three from blur and motion, where none of those knows it (`exposure="estimate"`)
    windows     packs the frames of a segment and its context into one node, which restores them; writes `FMANetModel`,
                `FMANetWindowStart`, `FMANetWindowEnd`, and the network's own estimate where the exposure is unknown
    skipping    replaces sharp frames by those of the source (`skip=True`); writes `FMANetSkipped`

`planes` copies planes to tensors and back, `nodes` shifts and caches clips, `motion` measures flow between frames for
`estimate` and `skipping`, `detector` is the scene detector without VapourSynth, and `blur_map` measures blur for users.
"""
