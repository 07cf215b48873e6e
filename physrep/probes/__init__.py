"""Probes: how well the physical parameters can be read from frozen features, and the controls to beat."""
