"""Keeps VXLAN and Geneve packets from leaving with a wrong outer UDP checksum."""
