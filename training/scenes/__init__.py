"""Scenes rendered from photographs under exactly known motion: sub-frames, exposures, flow, and pools of them."""
