"""Whether a page can be read: the contrast of its texts with what is behind them."""

from tests.servers.browser import Tab

# WCAG 2.2, 1.4.3; what is switched off is exempt.
LEAST = 4.5
# [contrast, text] of each text that is shown. Drawing a dot of it tells what a colour is, in
# whatever way it is written.
MEASURE = """(() => {
  const dot = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const read = (colour) => {
    dot.clearRect(0, 0, 1, 1);
    dot.fillStyle = colour;
    dot.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
    return [[r, g, b], a / 255];
  };
  const over = ([front, alpha], back) => front.map((v, n) => v * alpha + back[n] * (1 - alpha));
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const chain = (e) => (e ? [...chain(e.parentElement), e] : []);
  const measure = (element, style) => {
    const all = chain(element).map((e) => getComputedStyle(e));
    const back = all.reduce((b, s) => over(read(s.backgroundColor), b), [255, 255, 255]);
    const [colour, alpha] = read(element.closest("svg") ? style.fill : style.color);
    const front = over([colour, all.reduce((a, s) => a * s.opacity, alpha)], back);
    const [dim, bright] = [light(front), light(back)].sort((a, b) => a - b);
    return (bright + 0.05) / (dim + 0.05);
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    if (!element.checkVisibility() || element.matches(":disabled, .unseen, option")) continue;
    const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE);
    const text = own.map((node) => node.data).join("").trim();
    if (text) found.push([measure(element, getComputedStyle(element)), text]);
    if (element.placeholder && !element.value) {
      const style = getComputedStyle(element, "::placeholder");
      found.push([measure(element, style), element.placeholder]);
    }
  }
  return found;
})()"""


def find_faint(tab: Tab) -> list[str]:
    """The texts that the page shows with too little contrast, and how much each has."""
    found = tab.run(MEASURE)
    assert found
    return [f"{contrast:.2f}: {text}" for contrast, text in found if contrast < LEAST]
