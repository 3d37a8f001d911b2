"""FMA-Net++: its configuration, the network, its parts for engines, and the form that is deployed."""

from vsfmanet.networks.fmanetpp.config import FMANetPPConfig, preset
from vsfmanet.networks.fmanetpp.level import HRBABlock
from vsfmanet.networks.fmanetpp.model import FMANetPP, FMANetPPOutput, neighbour_index, start_from

__all__ = ["FMANetPP", "FMANetPPConfig", "FMANetPPOutput", "HRBABlock", "neighbour_index", "preset", "start_from"]
