"""Standardised uptake values of PET, from the headers of its DICOM files."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from .series import header

ZONE = re.compile(r"([+-])(\d\d)(\d\d)$")
DAY = timedelta(days=1)
LEAST, MOST = 1e6, 1e6  # becquerel and grams that people, and animals, get and weigh


def suv_factor(files: Sequence[Path]) -> float:
    """SUVbw = stored activity [Bq/ml] times this: body weight [g] / dose [Bq] at the time the activity stands for.

    Decay correction START: activity stands for the start of the scan, to which the dose decays from its injection,
    dose 2^(-t/T½); ADMIN: for the injection. From QIBA, "SUV vendor-neutral pseudo-code" (happy path), of RSNA's
    committee on FDG-PET. Activity that is SUV already (units GML) has factor 1. Raises ValueError, naming the file and
    the tag that is missing or does not allow it.
    """
    heads = [header(path) for path in files]
    path, head = files[0], heads[0]

    def needed(tags: Any, name: str) -> Any:
        value = tags[name].value if name in tags else None
        if value is None or (isinstance(value, Sequence) and not value):  # text or a sequence of nothing
            raise ValueError(
                f"{path}: has no {name}, from which SUV follows; add it, or keep stored values (--pet stored)"
            )
        return value

    def number(tags: Any, name: str) -> float:
        value = needed(tags, name)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: {name} is '{value}', expected a number; correct it, or set --pet stored"
            ) from None

    units = needed(head, "Units")
    if units == "GML":
        if (kind := str(head.get("SUVType") or "BW")) != "BW":
            raise ValueError(f"{path}: holds SUV of type {kind}, expected BW, of body weight; or set --pet stored")
        return 1.0
    if units != "BQML":
        raise ValueError(f"{path}: Units are {units}, expected BQML or GML; convert it, or set --pet stored")
    words = needed(head, "CorrectedImage")
    corrected = [words] if isinstance(words, str) else list(words)
    if "ATTN" not in corrected:
        raise ValueError(f"{path}: attenuation is not corrected ({', '.join(corrected)}); choose the corrected series")
    grams = 1000 * number(head, "PatientWeight")
    drug = needed(head, "RadiopharmaceuticalInformationSequence")[0]
    dose, half = number(drug, "RadionuclideTotalDose"), number(drug, "RadionuclideHalfLife")
    if not (grams > 0 and dose > 0 and half > 0):
        raise ValueError(f"{path}: weight {grams:g} g, dose {dose:g} Bq, half-life {half:g} s, all must be above 0")
    if dose < LEAST or grams > MOST:
        raise ValueError(
            f"{path}: dose {dose:g} Bq, weight {grams / 1000:g} kg, expected {LEAST:g} Bq or more and "
            f"{MOST / 1000:g} kg at most: are they in other units? Correct the header, or set --pet stored"
        )
    kind = needed(head, "DecayCorrection")
    if kind == "ADMIN":
        return grams / dose
    if kind != "START":
        raise ValueError(f"{path}: DecayCorrection is {kind}, expected START or ADMIN; set --pet stored")
    start = moment(path, needed(head, "SeriesDate"), needed(head, "SeriesTime"))
    acquired = [moment(path, needed(h, "AcquisitionDate"), needed(h, "AcquisitionTime")) for h in heads]
    start = min([start, *acquired])  # a series that was made anew bears a later time
    text = str(drug.get("RadiopharmaceuticalStartDateTime") or "")
    if len(text) > 8:  # with a time; a date alone is what an anonymiser may leave
        injected = moment(path, text[:8], text[8:])
        zone, own = (ZONE.search(str(words)) for words in (head.get("TimezoneOffsetFromUTC") or "", text))
        if zone and own:
            injected += offset(zone) - offset(own)
    else:
        injected = moment(path, f"{start:%Y%m%d}", needed(drug, "RadiopharmaceuticalStartTime"))
        injected -= DAY if injected > start else timedelta()
    elapsed = (start - injected).total_seconds()
    if not 0 <= elapsed < 10 * half:
        raise ValueError(
            f"{path}: the scan begins {elapsed:g} s after the injection; correct its times, or --pet stored"
        )
    return float(grams / (dose * 2 ** (-elapsed / half)))


def offset(zone: re.Match[str]) -> timedelta:
    """Of DICOM's +HHMM, from UTC."""
    return (1 if zone[1] == "+" else -1) * timedelta(hours=int(zone[2]), minutes=int(zone[3]))


def moment(path: Path, date: Any, time: Any) -> datetime:
    """Of DICOM's YYYYMMDD and HHMMSS.FFFFFF; a zone behind it is left out.

    Raises ValueError that names the file.
    """
    digits = str(time).split("+")[0].split("-")[0]
    whole, _, part = digits.partition(".")
    try:
        if len(str(date)) != 8:  # strptime takes fewer digits, too
            raise ValueError
        found = datetime.strptime(str(date) + whole.ljust(6, "0"), "%Y%m%d%H%M%S")
        return found + timedelta(seconds=float(f"0.{part or 0}"))
    except ValueError:
        raise ValueError(
            f"{path}: {date} {time} is no date and time of DICOM; correct it, or set --pet stored"
        ) from None
