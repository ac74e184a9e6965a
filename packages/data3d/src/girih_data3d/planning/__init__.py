"""What a plan is computed from and how: voxel size, topology and patch under a memory budget, anchors, queries."""
