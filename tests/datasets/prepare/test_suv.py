"""SUV by hand: 70 kg, 350 MBq, one half-life from injection to scan."""

from datetime import datetime
from pathlib import Path

import pytest

from tests.datasets.prepare import scans

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("SimpleITK")

from datasets.prepare.suv import moment, suv_factor  # noqa: E402

PLAIN = 70_000 / 3.5e8  # g / Bq: of activity at the injection


@pytest.fixture
def factor(tmp_path):
    count = iter(range(99))

    def of(change=None, **tags):
        import numpy as np

        folder = tmp_path / str(next(count))
        scans.series(folder, "PT", np.ones((3, 2, 2)), (1, 1, 1), (0, 0, 0), scans.pet_tags(**tags), [1, 1, 1])
        files = sorted(folder.iterdir())
        for path in files if change else []:
            ds = pydicom.dcmread(path)
            change(ds)
            ds.save_as(path)
        return suv_factor(files)

    return of


def drug(**changes):
    def change(ds):
        for key, value in changes.items():
            setattr(ds.RadiopharmaceuticalInformationSequence[0], key, value)

    return change


def test_the_dose_decays_until_the_scan(factor):
    assert factor() == pytest.approx(2 * PLAIN)
    assert factor(elapsed=0) == pytest.approx(PLAIN)
    assert factor(elapsed=2 * scans.HALF) == pytest.approx(4 * PLAIN)
    assert factor(DecayCorrection="ADMIN") == pytest.approx(PLAIN)
    assert factor(PatientWeight=35) == pytest.approx(PLAIN)
    assert factor(Units="GML") == factor(Units="GML", SUVType="BW") == 1


def test_times(factor):
    assert factor(SeriesTime="235959") == pytest.approx(2 * PLAIN * 2 ** (60 / scans.HALF))  # made anew: as acquired
    date = drug(RadiopharmaceuticalStartDateTime="20200102081012.000000+0100")
    assert factor(date) == pytest.approx(2 * PLAIN, rel=1e-4)
    assert factor(drug(RadiopharmaceuticalStartDateTime="20200102")) == factor()  # then by its time
    assert factor(drug(RadiopharmaceuticalStartDateTime="")) == factor()
    early = "20200102071012.000000"  # an hour before, unless that is in another zone
    for own, study, hours in (("+0000", "+0100", 1), ("-0030", "+0030", 1), ("+0100", "+0100", 0), ("", "+0100", 0)):
        found = factor(drug(RadiopharmaceuticalStartDateTime=early + own), TimezoneOffsetFromUTC=study)
        assert found == pytest.approx(2 * PLAIN * 2 ** ((1 - hours) * 3600 / scans.HALF), rel=1e-4)
    night = drug(RadiopharmaceuticalStartTime="235000")
    late = dict(SeriesTime="003948", AcquisitionTime="003948")  # 2988 s after midnight less ten minutes
    assert factor(night, **late) == pytest.approx(PLAIN * 2 ** ((600 + 2388) / scans.HALF))
    assert moment(Path("a.dcm"), "20200102", "0810") == datetime(2020, 1, 2, 8, 10)
    assert moment(Path("a.dcm"), "20200102", "081012.5") == datetime(2020, 1, 2, 8, 10, 12, 500_000)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (dict(PatientWeight=None), "has no PatientWeight, from which SUV follows; add it, or keep stored values"),
        (dict(PatientWeight=0), "weight 0 g"), (dict(PatientWeight=70_000), "weight 70000 kg, expected"),
        (dict(Units="GML", SUVType="LBM"), "holds SUV of type LBM, expected BW, of body weight"),
        (dict(Units="CNTS"), "Units are CNTS, expected BQML or GML"),
        (dict(CorrectedImage=["DECY"]), r"attenuation is not corrected \(DECY\)"),
        (dict(DecayCorrection="NONE"), "DecayCorrection is NONE, expected START or ADMIN"),
        (dict(RadiopharmaceuticalInformationSequence=None), "has no RadiopharmaceuticalInformationSequence"),
        (dict(elapsed=-60), "the scan begins 86340 s after the injection"),
    ],
)  # fmt: skip
def test_headers_that_do_not_say_it(factor, tags, said):
    with pytest.raises(ValueError, match=said):
        factor(**tags)


@pytest.mark.parametrize("tag", ["RadionuclideTotalDose", "RadionuclideHalfLife", "RadiopharmaceuticalStartTime"])
def test_a_drug_without(factor, tag):
    with pytest.raises(ValueError, match=rf"000.dcm: has no {tag}"):
        factor(lambda ds: delattr(ds.RadiopharmaceuticalInformationSequence[0], tag))


def test_a_dose_in_other_units(factor):
    with pytest.raises(ValueError, match=r"dose 350 Bq, .* expected 1e.06 Bq or more .* are they in other units"):
        factor(drug(RadionuclideTotalDose=350))
    with pytest.raises(ValueError, match=r"dose 350000 Bq"):
        factor(drug(RadionuclideTotalDose=350_000))


def test_empty_sequences_and_odd_times(factor):
    with pytest.raises(ValueError, match=r"dcm: has no RadiopharmaceuticalInformationSequence, from which SUV follows"):
        factor(lambda ds: setattr(ds, "RadiopharmaceuticalInformationSequence", []))
    with pytest.raises(ValueError, match=r"a.dcm: 20200102 8 Uhr is no date and time of DICOM"):
        moment(Path("a.dcm"), "20200102", "8 Uhr")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom's own
@pytest.mark.parametrize(
    ("tags", "written", "said"),
    [
        (dict(PatientWeight=76543), (b"76543", b"none "), "PatientWeight is 'none .0', expected a number"),
        (dict(SeriesDate="20310102"), (b"20310102", b"2031    "), "2031 100000 is no date and time of DICOM"),
    ],
)
def test_values_that_are_none(tmp_path, tags, written, said):
    """As a careless anonymiser leaves them."""
    import numpy as np

    scans.series(tmp_path / "s", "PT", np.ones((1, 2, 2)), (1, 1, 1), (0, 0, 0), scans.pet_tags(**tags), [1])
    (path,) = (tmp_path / "s").iterdir()
    path.write_bytes(path.read_bytes().replace(*written))
    with pytest.raises(ValueError, match=rf"000.dcm: {said}.*; correct it, or set --pet stored"):
        suv_factor([path])
