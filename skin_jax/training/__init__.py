"""Training: the loop, the runs in their work folders, checkpoints and history. It knows no task."""
