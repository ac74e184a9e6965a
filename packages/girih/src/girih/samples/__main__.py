"""`python -m girih.samples`: fill the sample cache with nothing but the standard library and pip."""

import sys

from girih.samples import SamplesUnavailable, cache_folder, fetch

try:
    fetch(on_progress=lambda what, done, total: print(f"{done}/{total} {what}", file=sys.stderr))
except SamplesUnavailable as error:
    sys.exit(str(error))
print(cache_folder())
