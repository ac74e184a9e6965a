"""3D medical object detectors and whole-volume inference."""
