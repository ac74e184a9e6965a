"""Medical volumes in zarr: read, prepare, and load training patches fast and safely."""
