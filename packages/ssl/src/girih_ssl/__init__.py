"""Self-supervised and supervised pre-training objectives for 3D medical volumes, one file each."""
