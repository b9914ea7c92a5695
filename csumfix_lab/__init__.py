"""A two-node VXLAN lab in temporary namespaces, with one real cause of wrong outer checksums."""

from csumfix_lab.causes import CAUSES
from csumfix_lab.lab import Lab
from csumfix_lab.node import Counters, Node

__all__ = ["CAUSES", "Counters", "Lab", "Node"]
