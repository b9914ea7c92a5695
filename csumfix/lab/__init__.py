"""A two-node VXLAN lab in throwaway namespaces, with one real cause of wrong outer checksums."""

from csumfix.lab.causes import CAUSES
from csumfix.lab.errors import LabError
from csumfix.lab.lab import Lab
from csumfix.lab.node import Counters, Node

__all__ = ["CAUSES", "Counters", "Lab", "LabError", "Node"]
