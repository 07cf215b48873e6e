"""What watches a run: online probe, collapse, progress; and what writes its metrics and checkpoints."""
