"""What the report says of its scores in words."""

from scripts.report.scores import LINEAR, SOURCE, verdict


def test_the_verdict_names_its_metrics():
    def said(own, *others):
        rows = [{"psnr": {"mean": psnr}, "ssim": {"mean": ssim}} for psnr, ssim in (own, *others)]
        return verdict(rows[0], dict(zip((SOURCE, LINEAR), rows[1:], strict=False)))

    assert said((20, 0.5), (18.5, 0.4), (19, 0.6)) == (
        "beats the source itself: PSNR +1.50 dB, SSIM +0.100; "
        "beats in part the linear map 7×7: PSNR +1.00 dB, SSIM -0.100"
    )
    assert said((20, 0.5), (21, 0.6)) == "does NOT beat the source itself: PSNR -1.00 dB, SSIM -0.100"
    assert said((20, None), (19, None)) == "beats the source itself: PSNR +1.00 dB"
    assert said((None, None), (19, 0.5)) == "could not be compared with the baselines"
