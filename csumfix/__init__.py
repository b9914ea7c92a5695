"""Keeps VXLAN packets from leaving with a wrong outer UDP checksum."""
