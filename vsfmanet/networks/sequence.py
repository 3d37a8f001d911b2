"""The interface of networks that read frames in order, as `vsfmanet.networks.description` defines it."""

from vsfmanet.networks.description import Features, SequenceNetwork, State

__all__ = ["Features", "SequenceNetwork", "State"]
