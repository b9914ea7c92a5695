"""What each cure of wrong VXLAN checksums costs, measured side by side in the lab."""
