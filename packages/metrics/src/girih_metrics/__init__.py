"""Detection metrics for 3D medical imaging: AP, FROC, bootstrap intervals, rankings."""
