"""Real 3D medical images to try everything on: fetched at run time, pinned, never part of the package."""

from girih.samples.fetch import Progress, SamplesUnavailable, cache_folder, fetch
from girih.samples.sample_set import SampleSet, Volume

__all__ = ["Progress", "SampleSet", "SamplesUnavailable", "Volume", "cache_folder", "fetch"]
