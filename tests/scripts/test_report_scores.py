"""What the report says of its scores in words."""

from scripts import report_scores


def test_the_verdict_names_its_metrics():
    def said(*values):
        rows = zip((report_scores.OWN, report_scores.SOURCE, report_scores.LINEAR), values, strict=False)
        names = ("psnr", "ssim")
        scores = {row: {n: {"mean": v} for n, v in zip(names, pair, strict=True)} for row, pair in rows}
        return report_scores.verdict(report_scores.Scores(scores, [], {}))

    assert said((20, 0.5), (18.5, 0.4), (19, 0.6)) == (
        "The samples beat the source itself by PSNR (+1.50 dB) and SSIM (+0.100); "
        "they beat the linear map by PSNR (+1.00 dB), not by SSIM (-0.100)."
    )
    assert said((20, 0.5), (21, 0.6)) == (
        "The samples do NOT beat the source itself by PSNR (-1.00 dB) nor by SSIM (-0.100)."
    )
    assert said((20, None), (19, None)) == "The samples beat the source itself by PSNR (+1.00 dB)."
