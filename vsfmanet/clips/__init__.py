"""A frame carries what is known of it: one node finds each fact and writes it as properties, later nodes read them.

`vsfmanet.restore` chains these nodes; frame n of each depends on frames near n of the clip alone, so the order of
requests changes nothing, and no node asks for a frame in its callback or while it is being built:

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
