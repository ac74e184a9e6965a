import os

import pytest

from girih.samples import SampleSet, SamplesUnavailable, fetch


@pytest.fixture(scope="session")
def samples() -> SampleSet:
    """The real scans, fetched once. Away from the registry its tests are skips, or failures if they are required."""
    try:
        return fetch()
    except SamplesUnavailable as reason:
        if os.environ.get("GIRIH_REQUIRE_SAMPLES") == "1":
            raise
        pytest.skip(f"the sample scans cannot be had: {str(reason).splitlines()[0]}")
