"""The report's pages in a real browser: nothing missing, nothing too wide, readable by day and by night."""

import pytest

from scripts.report import scores
from tests.scripts.report import browser
from tests.scripts.report.reports import logged_run, reported, sampled
from tests.scripts.sampling_runs import make_run

PHONE, DESK = 360, 1280
CONTRAST = 4.5  # of text and its background, WCAG 2 AA

WIDER = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => { const box = e.getBoundingClientRect();
    return box.right > document.documentElement.clientWidth + 0.5 || box.left < -0.5; })
  .map(e => e.outerHTML.slice(0, 80))
"""
PALE = """
(() => {
  const colour = text => { const c = text.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
  const light = c => [0.2126, 0.7152, 0.0722].map((w, i) => {
    const v = c[i] / 255;
    return w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }).reduce((a, b) => a + b);
  const behind = e => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
    if (c[3] == 1) return c; } return [255, 255, 255, 1]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || !e.getClientRects().length) continue;
    const text = colour(e instanceof SVGElement ? style.fill : style.color), a = light(text), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (text[3] != 1 || ratio < LEAST) found.push([node.data.trim().slice(0, 40), ratio]);
  }
  return found;
})()
""".replace("LEAST", str(CONTRAST))
LINES = """
[...document.querySelectorAll('.chart [style*=stroke], .legend line')].filter(e => {
  const c = getComputedStyle(e).stroke;
  return c == 'none' || c == 'rgb(0, 0, 0)' || c == getComputedStyle(document.body).backgroundColor; }).length
"""
PICTURES = (
    "[...document.images].map(i => [i.complete && i.naturalWidth > 0 && i.alt != '', i.getBoundingClientRect().width])"
)
NAVIGATION = (
    "[...document.querySelectorAll('nav a')].map(a => document.querySelectorAll(a.getAttribute('href')).length)"
)
MOVING = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.tabIndex)"


@pytest.fixture(scope="module")
def window():
    program = browser.find()
    if program is None:
        pytest.skip("there is no Chromium here")
    found = browser.Browser(program)
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of one run, and of four, one of which has a long name."""
    home = tmp_path_factory.mktemp("runs")
    one = logged_run(home / "one")
    sampled(one, "--nfe", 2)
    sampled(one, "--nfe", 3, "--order", 1, "--eta", 1)
    others = [make_run(home / name, seed=i) for i, name in enumerate(("two", "three", "a_very_long_name_" * 6), 1)]
    for run in others:
        sampled(run, "--nfe", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "FIT_PIXELS", 10_000)
        reported(one, "--metrics", "mse,psnr,ssim,mae,fd_raw,kd_raw")
        reported(one, *others, "--out", home / "several.html")
    return {"one": one / "report.html", "several": home / "several.html"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("name", ["one", "several"])
def test_a_page(window, pages, name, width, dark):
    window.open(pages[name], width, dark=dark)
    window.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    pictures = window.run(PICTURES)
    assert len(pictures) >= 36 and all(shown and across >= 32 for shown, across in pictures)
    assert window.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert window.run(WIDER) == []
    assert window.run(PALE) == []
    assert window.run("document.querySelectorAll('.chart [role=img] svg').length") >= 4 and window.run(LINES) == 0
    paper = window.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(22, 20, 18)" if dark else "rgb(255, 255, 255)")
    assert set(window.run(NAVIGATION)) == {1}
    if width == PHONE:  # what is too wide for the page moves in its own box, which the keyboard reaches
        assert set(window.run(MOVING)) == {0}
    assert window.problems == []


def test_the_checks_can_fail(window, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><body style='background: #fff'><p style='width: 900px'>wide"
        "<p style='color: #aaa'>pale<img src=gone.png alt=x>"
        "<div class=chart><svg><path style='stroke: #000'/></svg></div><script>undefined.x; </script>"
    )
    window.open(bad, PHONE)
    assert len(window.problems) >= 2
    assert window.run(WIDER) and window.run(LINES) == 1 and not window.run(PICTURES)[0][0]
    assert [text for text, _ in window.run(PALE)] == ["pale"]
