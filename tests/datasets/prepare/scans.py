"""Small volumes as scanners and challenges write them: DICOM series by pydicom, NIfTI by nibabel, MetaImage by hand.

Values are linear in the position in mm, so that trilinear resampling is exact and every voxel can be foretold.
"""

import numpy as np

EYE = np.eye(3)
HU, ACTIVITY = (-200.0, 8.0, -5.0, 12.0), (4000.0, 30.0, 20.0, -25.0)  # constant, and a mm of x, y, z (LPS)
WEIGHT, DOSE, HALF = 70.0, 3.5e8, 6588.0  # kg, Bq, s


def linear(field, points):
    """points: [..., 3] in mm."""
    return field[0] + points @ np.array(field[1:])


def points_of(size, spacing, origin, direction=EYE):
    """[z, y, x, 3] in mm, of LPS."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    return np.moveaxis(origin + (index * spacing) @ np.reshape(direction, (3, 3)).T, (0, 1, 2), (2, 1, 0))


def pet_tags(elapsed=HALF, **changes):
    """Of one half-life between injection and scan."""
    from pydicom.dataset import Dataset

    drug = Dataset()
    start = 10 * 3600 - elapsed
    drug.RadiopharmaceuticalStartTime = f"{int(start // 3600):02d}{int(start % 3600 // 60):02d}{start % 60:06.3f}"
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = DOSE, HALF
    tags = dict(
        Units="BQML", CorrectedImage=["NORM", "ATTN", "DECY"], DecayCorrection="START", PatientWeight=WEIGHT,
        SeriesDate="20200102", SeriesTime="100000", AcquisitionDate="20200102", AcquisitionTime="100100",
        RadiopharmaceuticalInformationSequence=[drug],
    ) | changes  # fmt: skip
    return {key: value for key, value in tags.items() if value is not None}


def series(folder, modality, values, spacing, origin, tags=(), slopes=None, patient="p"):
    """A DICOM series: [z, y, x], a file a slice, whose names say nothing of their order; slopes: one each."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    uid = generate_uid(entropy_srcs=[str(folder)])
    for z, layer in enumerate(values):
        meta = FileMetaDataset()
        kind = {"CT": "1.2.840.10008.5.1.4.1.1.2", "PT": "1.2.840.10008.5.1.4.1.1.128"}[modality]
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = kind, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[uid, str(z)])
        path = folder / f"{(7 * z) % 101:03d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
        ds.Modality, ds.SeriesInstanceUID, ds.PatientID, ds.InstanceNumber = modality, uid, patient, z + 1
        ds.Rows, ds.Columns = layer.shape
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.ImageOrientationPatient, ds.ImagePositionPatient = (
            [1, 0, 0, 0, 1, 0],
            [*origin[:2], origin[2] + z * spacing[2]],
        )
        slope, intercept = (slopes[z], 0) if slopes is not None else (1, -1024)
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        for key, value in dict(tags).items():
            setattr(ds, key, value)
        ds.PixelData = np.rint((layer - intercept) / slope).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)


CT = dict(size=(14, 12, 9), spacing=(1.5, 2.0, 2.5), origin=(-8.0, -9.0, 20.0))
PET = dict(size=(8, 8, 6), spacing=(2.5, 2.5, 3.0), origin=(-7.0, -7.5, 22.0))


def ct_pet_study(folder, **changes):
    series(folder / "CT", "CT", linear(HU, points_of(**CT)), CT["spacing"], CT["origin"])
    activity = linear(ACTIVITY, points_of(**PET))
    slopes = activity.reshape(6, -1).max(1) / 60000  # another for every slice, as of PET
    series(folder / "PET", "PT", activity, PET["spacing"], PET["origin"], pet_tags(**changes), slopes)


def ct_pet(root, patients=4):
    for n in range(patients):
        ct_pet_study(root / f"ct_pet/PETCT_{n}/study")
    return root / "ct_pet"


def nifti(path, values, affine_lps):
    """values: [z, y, x]; NIfTI has x, y, z and an affine map to RAS."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([-1, -1, 1, 1]) @ affine_lps), path)


def metaimage(path, values, spacing, origin, direction=EYE):
    """An .mha by the format's own description: a header of text, then the voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {
        "ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": " ".join(map(str, np.reshape(direction, (3, 3)).T.ravel())),
        "Offset": " ".join(map(str, origin)), "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, values.T.shape)), "ElementType": "MET_FLOAT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    text = "".join(f"{key} = {value}\n" for key, value in words.items())
    path.write_bytes(text.encode() + values.astype("<f4").tobytes())


MR = (30.0, 10.0, -4.0, 6.0)  # also a little below 0, as resampling makes it
ANATOMY = dict(size=(10, 8, 5), spacing=(1.0, 1.5, 3.0), origin=(4.0, 5.0, -6.0))


def mr_ct(root, patients=4):
    """Even patients in NIfTI, odd ones as MetaImage; a mask without the first slice and row."""
    for n in range(patients):
        folder, points = root / f"mr_ct/Task1/brain/1BA00{n}", points_of(**ANATOMY)
        mask = np.ones(points.shape[:3])
        mask[0], mask[:, 0] = 0, 0
        affine = np.diag([*ANATOMY["spacing"], 1.0])
        affine[:3, 3] = ANATOMY["origin"]
        for name, values in (("mr", linear(MR, points)), ("ct", linear(HU, points)), ("mask", mask)):
            if n % 2:
                metaimage(folder / f"{name}.mha", values, ANATOMY["spacing"], ANATOMY["origin"])
            else:
                nifti(folder / f"{name}.nii.gz", values.astype(np.float32), affine)
    return root / "mr_ct"


def points(entry):
    """Where the voxels of a study in the manifest lie."""
    grid = entry["grid"]
    return points_of(grid["size"], grid["spacing"], grid["origin"], grid["direction"])


def stack(folder, entry):
    """Its slices, [z, y, x, ...]."""
    import tifffile

    return np.stack([tifffile.imread(folder / f"{entry['name']}_z{z:04d}.tif") for z in entry["slices"]])
