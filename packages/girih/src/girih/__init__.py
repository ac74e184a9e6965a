"""3D medical object detection with pre-training: from scans to a scored detector."""
