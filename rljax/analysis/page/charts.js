"use strict";
// Elements, numbers as text, and charts: lines, fans and histograms as SVG. Whatever text comes from
// a run goes into the page as a text node, so that markup in it stays text.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

const MINUS = "\u2212";
function text(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  const short = size !== 0 && (size < 1e-3 || size >= 1e6)
    ? value.toExponential(1)
    : Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
  return short.replaceAll("-", MINUS);
}
const percent = (share) => `${Math.round(share * 1000) / 10}\u00a0%`;

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-6; k++) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

// As rljax.analysis.series.smoothed; a point that is a mean of `bins` steps weighs as much as they.
function smooth(values, weight, bins) {
  const keep = weight ** bins;
  let average = 0, left = 1;
  return values.map((value) => {
    if (value === null) return null;
    average = keep * average + (1 - keep) * value;
    left *= keep;
    return average / (1 - left);
  });
}

function nearest(steps, step) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
}

const EDGE = { left: 50, right: 12, top: 9, bottom: 24 };

function extent(numbers) {
  let low = Infinity, high = -Infinity;
  for (const number of numbers) {
    if (number === null || number === undefined) continue;
    if (number < low) low = number;
    if (number > high) high = number;
  }
  return low > high ? [0, 1] : [low, high];
}

// A chart drawn anew whenever its width or what it shows changes. `content` makes, of a width:
// {x, y, band, bounds, shapes(scale), told(step)}; `told` gives the lines of the tooltip.
class Chart {
  constructor(content, { height = 190, label = "" } = {}) {
    this.content = content;
    this.height = height;
    this.label = label;
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "plot" }, this.tip);
    new ResizeObserver(() => this.resized()).observe(this.element);
    this.element.addEventListener("pointermove", (event) => this.point(event));
    this.element.addEventListener("pointerdown", (event) => this.point(event));
    this.element.addEventListener("pointerleave", () => this.leave());
  }

  resized() {
    if (this.element.clientWidth !== this.width) this.draw();
  }

  draw() {
    this.width = this.element.clientWidth;
    if (!this.width) return;
    const { x, y, bands = [], bounds = [], shapes } = this.content();
    const [left, right] = [EDGE.left, this.width - EDGE.right];
    const [top, bottom] = [EDGE.top, this.height - EDGE.bottom];
    const across = (step) => left + ((step - x[0]) / (x[1] - x[0] || 1)) * (right - left);
    const up = (value) => bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (bottom - top);
    const within = (value) => Math.min(Math.max(up(value), top), bottom);
    this.scale = { x: across, y: up, back: (px) => x[0] + ((px - left) / (right - left || 1)) * (x[1] - x[0]) };
    const drawing = svg("svg", { height: this.height, role: "img", "aria-label": this.label });
    for (const [low, high] of bands) {
      drawing.append(svg("rect", { class: "in-band", x: left, width: right - left, y: within(high), height: Math.max(within(low) - within(high), 1) }));
    }
    for (const tick of ticks(y[0], y[1], 4)) {
      drawing.append(
        svg("line", { class: "rule", x1: left, x2: right, y1: up(tick), y2: up(tick) }),
        svg("text", { x: left - 7, y: up(tick) + 4, "text-anchor": "end" }, text(tick)),
      );
    }
    for (const tick of ticks(x[0], x[1], this.width < 420 ? 4 : 6).filter(Number.isInteger)) {
      drawing.append(svg("text", { x: across(tick), y: this.height - 7, "text-anchor": across(tick) > right - 8 ? "end" : "middle" }, text(tick)));
    }
    drawing.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    for (const bound of bounds) {
      drawing.append(svg("line", { class: "bound", x1: left, x2: right, y1: up(bound), y2: up(bound) }));
    }
    drawing.append(...shapes(this.scale).flat(Infinity));
    this.cross = svg("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
    drawing.append(this.cross);
    this.element.replaceChildren(drawing, this.tip);
  }

  point(event) {
    if (!this.scale) return;
    const place = event.clientX - this.element.getBoundingClientRect().left;
    const told = this.content().told(this.scale.back(place));
    if (!told) return this.leave();
    const px = this.scale.x(told.step);
    fill(this.cross, { x1: px, x2: px, visibility: "visible" }, []);
    this.tip.replaceChildren(h("div", { class: "muted" }, told.title), ...told.lines);
    this.tip.hidden = false;
    const room = this.element.clientWidth - this.tip.offsetWidth;
    const beside = px + 12 > room ? px - 12 - this.tip.offsetWidth : px + 12;
    this.tip.style.left = `${Math.max(Math.min(beside, room), 0)}px`;
  }

  leave() {
    this.tip.hidden = true;
    if (this.cross) this.cross.setAttribute("visibility", "hidden");
  }
}

// The path through points; where there is no number, it is interrupted.
function path(steps, values, scale) {
  let drawn = "", pen = "M";
  for (let i = 0; i < steps.length; i++) {
    if (values[i] === null) { pen = "M"; continue; }
    drawn += `${pen}${scale.x(steps[i]).toFixed(1)} ${scale.y(values[i]).toFixed(1)}`;
    pen = "L";
  }
  return drawn;
}

function area(low, high, scale) {
  const there = low.steps.map((_, i) => i).filter((i) => low.values[i] !== null && high.values[i] !== null && high.values[i] !== undefined);
  const at = (series, i) => `${scale.x(series.steps[i]).toFixed(1)} ${scale.y(series.values[i]).toFixed(1)}`;
  const over = there.map((i) => at(high, i)), under = there.map((i) => at(low, i)).reverse();
  return there.length ? `M${over.join("L")}L${under.join("L")}Z` : "";
}

function histogram(edges, counts, band, label) {
  const width = 190, height = 92, bottom = height - 17, last = edges[edges.length - 1] || 1;
  const across = (tokens) => 2 + (tokens / last) * (width - 4);
  const most = Math.max(...counts, 1);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  if (band) {
    const [from, to] = band.map((edge) => Math.min(across(edge), width - 2));
    drawing.append(svg("rect", { class: "in-band", x: from, y: 0, width: Math.max(to - from, 1), height: bottom }));
  }
  counts.forEach((count, i) => {
    const tall = (count / most) * (bottom - 4);
    const [from, to] = [across(edges[i]), across(edges[i + 1])];
    drawing.append(svg("rect", { class: "bar", x: from + 0.5, y: bottom - tall, width: Math.max(to - from - 1, 0.5), height: tall },
      svg("title", {}, `${edges[i]} to ${edges[i + 1] - 1} tokens: ${count}`)));
  });
  drawing.append(svg("line", { class: "axis", x1: 2, x2: width - 2, y1: bottom, y2: bottom }));
  for (const tick of ticks(0, last, 4)) {
    const anchor = tick === 0 ? "start" : across(tick) > width - 12 ? "end" : "middle";
    drawing.append(svg("text", { x: across(tick), y: height - 4, "text-anchor": anchor }, text(tick)));
  }
  return drawing;
}
