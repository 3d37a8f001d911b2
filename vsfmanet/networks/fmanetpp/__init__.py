"""FMA-Net++: its configuration, the network, its parts for engines, and the form that is deployed."""

from vsfmanet.networks.fmanetpp.config import FMANetPPConfig, preset
from vsfmanet.networks.fmanetpp.level import HRBABlock
from vsfmanet.networks.fmanetpp.model import Degradation, FMANetPP, FMANetPPOutput

__all__ = ["Degradation", "FMANetPP", "FMANetPPConfig", "FMANetPPOutput", "HRBABlock", "preset"]
