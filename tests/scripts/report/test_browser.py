"""The report's pages in a real browser: nothing missing, nothing too wide, readable by day and by night."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.scripts.report.reports import logged_run, reported, sampled, translated
from tests.scripts.sampling_runs import make_run

WIDTHS = (360, 1280)  # of a phone, of a desk
CONTRAST = 4.5  # of text and its background, WCAG 2 AA
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
MEASURE = """(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const colour = text => { const c = text.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
  const light = c => [0.2126, 0.7152, 0.0722].map((w, i) => {
    const v = c[i] / 255;
    return w * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); }).reduce((a, b) => a + b);
  const behind = e => { for (; e; e = e.parentElement) { const c = colour(getComputedStyle(e).backgroundColor);
    if (c[3] == 1) return c; } return [255, 255, 255, 1]; };
  all('details').forEach(e => { e.open = true; });
  const pale = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, style = getComputedStyle(e);
    if (!node.data.trim() || !e.getClientRects().length) continue;
    const text = colour(e instanceof SVGElement ? style.fill : style.color), a = light(text), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (text[3] != 1 || ratio < CONTRAST) pale.push(node.data.trim().slice(0, 40));
  }
  const paper = getComputedStyle(document.body).backgroundColor, width = document.documentElement.clientWidth;
  return {pale, paper, width: [innerWidth, width, document.documentElement.scrollWidth],
    wider: all('body *').filter(e => !e.closest('.scroll') || e.matches('.scroll')).filter(e => {
      const box = e.getBoundingClientRect();
      return box.right > width + 0.5 || box.left < -0.5; }).map(e => e.outerHTML.slice(0, 80)),
    lost: all('.chart [style*=stroke], .legend line').filter(e =>
      ['none', 'rgb(0, 0, 0)', paper].includes(getComputedStyle(e).stroke)).length,
    charts: all('.chart [role=img] svg').length,
    pictures: [...document.images].map(i => i.complete && i.naturalWidth > 0 && i.alt != '' && i.width >= 32),
    leads: all('nav a').map(a => all(a.getAttribute('href')).length),
    moving: all('.scroll').filter(e => e.scrollWidth > e.clientWidth).map(e => e.tabIndex)};
})()""".replace("CONTRAST", str(CONTRAST))


def measured(folder, pages, dark):
    """What MEASURE finds of every page, `[(text, width)]`, each in a frame of its own."""
    frames = [f'<iframe width={w} height=900 style="border:0" srcdoc="{html.escape(text)}">' for text, w in pages]
    script = "onload = () => { const found = [...document.querySelectorAll('iframe')].map("
    script += f"f => f.contentWindow.eval({json.dumps(MEASURE)}));"
    script += "document.body.replaceChildren(); document.title = JSON.stringify(found); }"
    (folder / "all.html").write_text(f"<script>{script}</script><body>{'</iframe>'.join(frames)}</iframe>")
    own = [f"--user-data-dir={folder}/user", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [CHROMIUM, *FLAGS.split(), *own, "--dump-dom", f"file://{folder}/all.html"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search("<title>(.*)</title>", page)[1]))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of one run, of four, one of which has a long name, and one with every fault, at both widths."""
    home = tmp_path_factory.mktemp("runs")
    one = logged_run(home / "one")
    sampled(one, "--nfe", 2)
    sampled(one, "--nfe", 3, "--order", 1, "--eta", 1, "--draws", 2)
    sampled(one, "--nfe", 3, "--order", 1, "--eta", 1, "--split", "train")
    translated(one)
    others = [make_run(home / name, seed=i) for i, name in enumerate(("two", "three", "a_very_long_name_" * 6), 1)]
    for run in others:
        sampled(run, "--nfe", 2)
    reported(one, "--metrics", "mse,psnr,ssim,mae,fd_raw,kd_raw")
    reported(one, *others, "--out", home / "several.html")
    bad = (
        "<body style='background: #fff'><p style='width: 900px'>wide<p style='color: #aaa'>pale<img src=gone alt=x>"
        "<nav><a href='#no'>x</a></nav><div class=chart><svg><path style='stroke: #000'/></svg></div>"
    )
    texts = [path.read_text() for path in (one / "report.html", home / "several.html")]
    return [(text, width) for text in (*texts, bad) for width in WIDTHS]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages(pages, tmp_path, dark):
    *found, bad, _ = measured(tmp_path, pages, dark)
    for (_, width), page in zip(pages, found, strict=False):
        assert len(page["pictures"]) >= 36 and all(page["pictures"]) and page["charts"] >= 4
        assert page["width"] == [width] * 3 and (page["wider"], page["pale"], page["lost"]) == ([], [], 0)
        assert page["paper"] == ("rgb(22, 20, 18)" if dark else "rgb(255, 255, 255)") and set(page["leads"]) == {1}
        assert width != WIDTHS[0] or set(page["moving"]) == {0}  # too wide: in a box that the keyboard reaches
    assert bad["wider"] and bad["pale"] == ["pale"] and bad["lost"] == 1 and bad["leads"] == [0]
    assert bad["pictures"] == [False]
