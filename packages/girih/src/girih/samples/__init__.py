"""Real 3D medical images to try everything on: fetched at run time, pinned, never part of the package.

`girih.samples.lidc` reads nodule shapes from the LIDC-IDRI annotations, `girih.samples.lidc_in_ct` makes a detection
benchmark of them. They are not imported here, so that fetching needs the standard library only.
"""

from girih.samples.fetch import Progress, SamplesUnavailable, cache_folder, fetch
from girih.samples.sample_set import SampleSet, Volume

__all__ = ["Progress", "SampleSet", "SamplesUnavailable", "Volume", "cache_folder", "fetch"]
