"""The XML files of LIDC-IDRI, and what no such file holds."""

from pathlib import Path

import pytest

from girih_data3d import ManifestError, ScanError
from girih_data3d.formats.lidc_xml import MAX_XML_BYTES, Heading, read_heading, read_readings

READINGS = """<?xml version="1.0" encoding="UTF-8"?>
<LidcReadMessage xmlns="{namespace}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <ResponseHeader><Version>1.8.1</Version><SeriesInstanceUid>1.2.3</SeriesInstanceUid></ResponseHeader>
  <readingSession>
    <annotationVersion>3.12</annotationVersion>
    <servicingRadiologistID>540461523</servicingRadiologistID>
    <unblindedReadNodule>
      <noduleID>IL057_1</noduleID>
      <characteristics><subtlety>5</subtlety><malignancy> 4 </malignancy></characteristics>
      <roi>
        <imageZposition>-105.500000 </imageZposition><imageSOP_UID>1.9</imageSOP_UID><inclusion>TRUE</inclusion>
        <edgeMap><xCoord>10</xCoord><yCoord>20</yCoord></edgeMap>
        <edgeMap><xCoord>12</xCoord><yCoord>22</yCoord></edgeMap>
        <edgeMap><xCoord>14</xCoord><yCoord>20</yCoord></edgeMap>
      </roi>
      <roi>
        <imageZposition>-104</imageZposition><imageSOP_UID>1.10</imageSOP_UID><inclusion>false</inclusion>
        <edgeMap><xCoord>11</xCoord><yCoord>21</yCoord></edgeMap>
      </roi>
    </unblindedReadNodule>
    <unblindedReadNodule>
      <noduleID>small</noduleID>
      <roi>
        <imageZposition>-90</imageZposition><imageSOP_UID>1.11</imageSOP_UID><inclusion>TRUE</inclusion>
        <edgeMap><xCoord>30</xCoord><yCoord>40</yCoord></edgeMap>
      </roi>
    </unblindedReadNodule>
    <nonNodule><nonNoduleID>7</nonNoduleID><locus><xCoord>1</xCoord><yCoord>2</yCoord></locus></nonNodule>
  </readingSession>
  <readingSession><annotationVersion>3.12</annotationVersion></readingSession>
</LidcReadMessage>
"""
NAMESPACES = ("http://www.nih.gov", "http://www.nih.gov/idri")
BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<LidcReadMessage><readingSession><x>&c;</x></readingSession></LidcReadMessage>
"""


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_mark_of_every_reader_is_read_whatever_the_namespace(tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "069.xml"
    path.write_text(READINGS.format(namespace=namespace))
    assert read_heading(path) == Heading("LidcReadMessage", "1.2.3", has_readings=True)
    readings = read_readings(path)
    assert (readings.readers, readings.non_nodules) == (2, 1)
    nodule, small = readings.marks
    assert (nodule.reader, nodule.nodule_id, nodule.malignancy, nodule.is_point) == (0, "IL057_1", 4, False)
    outline, hole = nodule.outlines
    assert (outline.z_mm, outline.sop_uid, outline.inclusion) == (-105.5, "1.9", True)
    assert outline.points_xy.tolist() == [[10, 20], [12, 22], [14, 20]]
    assert not hole.inclusion
    assert (small.malignancy, small.is_point) == (None, True)


def test_a_radiograph_has_no_readings_of_a_ct(tmp_path: Path) -> None:
    path = tmp_path / "cxr.xml"
    path.write_text('<IdriReadMessage xmlns="http://www.nih.gov/idri"><CXRreadingSession/></IdriReadMessage>')
    assert read_heading(path) == Heading("IdriReadMessage", "", has_readings=False)
    with pytest.raises(ScanError, match="holds 'IdriReadMessage', wanted 'LidcReadMessage'"):
        read_readings(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "declares a document type or entities"),
        ('<!DOCTYPE r SYSTEM "file:///etc/passwd"><LidcReadMessage/>', "declares a document type or entities"),
        (READINGS[:700], "truncated"),
        ("", "truncated"),
        ("no XML\0", "truncated"),
        ('<?xml version="1.0" encoding="klingon"?><LidcReadMessage/>', "truncated"),
    ],
)
def test_hostile_and_broken_files_are_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.xml"
    path.write_text(content)
    with pytest.raises(ScanError, match=f"bad.xml: .*{message}"):
        read_readings(path)
    if not content.startswith('<?xml version="1.0" encoding="UTF'):  # the heading of the truncated file is whole
        with pytest.raises(ManifestError, match=f"bad.xml: .*{message}"):
            read_heading(path)


def test_a_file_that_is_far_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.xml"
    with path.open("wb") as stream:
        stream.truncate(MAX_XML_BYTES + 1)
    with pytest.raises(ManifestError, match="wanted at most"):
        read_heading(path)


def test_elements_nested_twenty_thousand_deep_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "deep.xml"
    path.write_text("<LidcReadMessage>" + "<a>" * 20_000 + "</a>" * 20_000 + "</LidcReadMessage>")
    assert not read_heading(path).has_readings
    assert read_readings(path).marks == ()


def test_more_than_anybody_draws_is_refused(tmp_path: Path) -> None:
    edge, mark = "<edgeMap><xCoord>11</xCoord><yCoord>21</yCoord></edgeMap>", "<nonNodule>"
    path = tmp_path / "many.xml"
    whole = READINGS.format(namespace=NAMESPACES[0])
    path.write_text(whole.replace(edge, edge * 10_001))
    with pytest.raises(ScanError, match="a roi of 10001 edgeMap"):
        read_readings(path)
    small = whole[whole.rindex("<unblindedReadNodule>") : whole.index(mark)]
    path.write_text(whole.replace(mark, small * 1000 + mark))
    with pytest.raises(ScanError, match="1002 marks, wanted at most 1000"):
        read_readings(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xCoord>12<", "<xCoord>12.5<", "xCoord is '12.5', wanted a whole number"),
        ("<yCoord>22<", "<yCoord><", "yCoord is '', wanted a whole number"),
        ("<yCoord>22<", "<yCoord>99999999999999999999<", "wanted a whole number"),
        ("-105.500000 ", "nan", "imageZposition is 'nan', wanted a finite number"),
        ("<inclusion>TRUE", "<inclusion>MAYBE", "inclusion is 'MAYBE', wanted TRUE or FALSE"),
        ("<edgeMap><xCoord>11</xCoord><yCoord>21</yCoord></edgeMap>", "", "a roi of 0 edgeMap at imageZposition -104"),
        ("<malignancy> 4 ", "<malignancy>6", "malignancy is 6, wanted 1 to 5"),
    ],
)
def test_a_wrong_value_is_named_with_its_reader_and_nodule(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in READINGS
    path = tmp_path / "bad.xml"
    path.write_text(READINGS.format(namespace=NAMESPACES[0]).replace(old, new))
    with pytest.raises(ScanError, match=f"reading session 0, nodule .*{message}"):
        read_readings(path)
