// Return the texts with too little contrast (WCAG 2.2, 1.4.3), the pixels beyond the right edge, and the widths of
// figures that are narrower than their place.
document.querySelectorAll('details').forEach((each) => { each.open = true; });
const numbers = (text) => [...text.match(/[\d.]+/g).map(Number), 1].slice(0, 4);
const over = (top, below) => [0, 1, 2].map((each) => top[each] * top[3] + below[each] * (1 - top[3]));
const light = (colour) => colour.map((each) => each / 255)
  .map((each) => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4)
  .reduce((sum, each, place) => sum + each * [.2126, .7152, .0722][place], 0);
const behind = (element) => {
  const layers = [];
  for (let each = element; each; each = each.parentElement) {
    layers.push(numbers(getComputedStyle(each).backgroundColor));
    if (layers.at(-1)[3] === 1) break;
  }
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
};
const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || style.visibility !== 'visible' || !element.getClientRects().length) continue;
  const colour = numbers(element instanceof SVGElement ? style.fill : style.color), below = behind(element);
  for (let each = element; each; each = each.parentElement) colour[3] *= Number(getComputedStyle(each).opacity);
  const [low, high] = [light(over(colour, below)), light(below)].sort((one, other) => one - other);
  const size = parseFloat(style.fontSize), isLarge = size >= 24 || size >= 18.66 && Number(style.fontWeight) >= 700;
  if ((high + .05) / (low + .05) < (isLarge ? 3 : 4.5)) faint.push(walker.currentNode.data.trim());
}
const widths = (each) => [each.clientWidth, each.parentElement.clientWidth];
const narrow = [...document.querySelectorAll('figure svg')].map(widths);
return [faint, document.documentElement.scrollWidth - innerWidth, narrow.filter(([own, place]) => own < place - 1)];
