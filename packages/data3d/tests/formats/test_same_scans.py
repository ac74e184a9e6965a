"""LUNA16 lies in LIDC-IDRI: its scans are found by their series, and by their voxels where nobody says the series."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import girih_data3d as d3

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.{}"
READINGS = """<LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader><SeriesInstanceUid>{}</SeriesInstanceUid>
</ResponseHeader><readingSession/></LidcReadMessage>"""


def test_luna16_and_lidc_idri(
    tmp_path: Path, scans: dict[str, Any], write_series: Callable[..., Path], write_rows: Callable[..., Path]
) -> None:
    names = ("plain", "touching", "numbered")
    for number, name in enumerate(names, start=1):
        uid = UID.format(number)
        series = write_series(scans[name], tmp_path / f"LIDC-IDRI/LIDC-IDRI-{number:04}/1.2/{uid}", series_uid=uid)
        (series / "069.xml").write_text(READINGS.format(uid))
        if name != "touching":
            scans[name].write(tmp_path / "luna" / "subset0" / f"{uid}.mhd")
    write_rows(tmp_path / "luna" / "annotations.csv", [["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]])
    lidc = d3.read_format("lidc-idri", tmp_path / "LIDC-IDRI")
    luna = d3.read_format("luna16", tmp_path / "luna", excluded="background")
    nameless = replace(luna, sources=tuple(replace(source, series_uid=None) for source in luna.sources))
    stores = {}
    for name, dataset in (("lidc", lidc), ("luna", luna), ("nameless", nameless)):
        spec = d3.PrepareSpec(target_zyx_mm=None)
        assert not d3.prepare_many(dataset, tmp_path / "prepared" / name, spec, workers=0).failed
        stores[name] = d3.Store.open(tmp_path / "prepared" / name)
    for name, reason in (("luna", "series"), ("nameless", "content")):
        assert [
            (leak.case_a, leak.case_b, leak.reason) for leak in d3.find_leaks(stores["lidc"], stores[name]).leaks
        ] == [
            ("LIDC-IDRI-0001", UID.format(1), reason),
            ("LIDC-IDRI-0003", UID.format(3), reason),
        ]
    d3.check_no_leak(stores["lidc"].select(["LIDC-IDRI-0002"]), stores["luna"])
