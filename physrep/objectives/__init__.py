"""Self-supervised objectives: one file each, on the base in base.py."""
