// The sections of the report, made of the data that lies in the page.

const data = JSON.parse(document.getElementById("data").textContent);
const shown = { weight: data.weight, hidden: new Set() };
const charts = [];
const color = (index) => `c${index % 7}`;
const dash = (index) => (index < 7 ? "" : `dash${1 + (Math.floor(index / 7) % 2)}`);
const tag = (index) => h("span", { class: `name ${color(index)}` }, h("span", { class: "swatch" }), h("b", {}, data.runs[index].label));
const bandText = (band) => (band ? `band ${text(band[0])} to ${text(band[1])} tokens` : "no band");

function section(id, title, ...content) {
  document.getElementById("nav").append(h("a", { href: `#${id}` }, title));
  document.getElementById("main").append(h("section", { id }, h("h2", {}, title), content));
}

const signed = (value, shown) => (value > 0 ? "+" : "") + shown(value).replace("-", MINUS);
const shortly = (bounds) => bounds.replace("at most", "\u2264").replace("at least", "\u2265");

function verdicts() {
  return h("div", { class: "grid wide" }, data.runs.map((run, index) => {
    const signs = run.findings.map((finding) => {
      const unknown = finding.verdict === "not measured";
      const state = unknown ? ["–", "muted"] : finding.sound ? ["✓", "ok"] : ["✗", "wrong"];
      return h("li", {},
        h("span", { class: `state ${state[1]}`, title: finding.verdict }, state[0]),
        h("span", { class: "name" }, finding.name),
        h("span", { class: "num" }, text(finding.value), h("span", { class: "muted" }, ` (${shortly(finding.bounds)})`)),
        finding.meaning ? h("span", { class: "why" }, `${unknown ? "not measured: " : ""}${finding.meaning}`) : null);
    });
    return h("div", { class: "card" },
      h("div", { class: "row between" }, h("h3", {}, tag(index)),
        h("span", { class: `chip verdict ${run.healthy ? "good" : "bad"}` }, run.healthy ? "healthy" : "unhealthy")),
      h("div", { class: "muted small" }, `${run.steps} steps, ${bandText(run.band)}; judged by steps ${run.window[0]} to ${run.window[1]}`),
      h("ul", { class: "signs" }, signs),
      h("div", { class: "muted small mono name" }, run.folder));
  }));
}

function summaries() {
  const rows = data.curves.map((curve) => {
    const have = data.runs
      .map((run, index) => [index, run.summary.find((row) => row.metric === curve.name)])
      .filter(([, row]) => row);
    return h("tbody", { class: "group" }, have.map(([index, row], place) => h("tr", {},
      place ? null : h("th", { scope: "rowgroup", rowspan: have.length, title: curve.meaning }, curve.name,
        curve.unit ? h("span", { class: "muted" }, ` ${curve.unit}`) : null),
      h("td", {}, tag(index)),
      [row.first, row.last].map((value) => h("td", { class: "num" }, text(value))),
      h("td", { class: "num" }, text(row.best), row.best === null ? null : h("span", { class: "muted" }, ` @${row.best_step}`)),
      [row.before, row.after].map((value) => h("td", { class: "num" }, text(value))))));
  });
  const heads = ["first", "last", "best @step", "held out: before", "after"];
  return [
    h("div", { class: "scroll", tabindex: 0 }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "metric"), h("th", {}, "run"), heads.map((head) => h("th", { class: "num" }, head)))),
      rows)),
    h("p", { class: "note" }, "First is the first step, last the mean over the steps a run is judged by, best the best step where it is known which is better. Held out: the first and the last evaluation."),
  ];
}

const visible = () => data.runs.map((_, index) => index).filter((index) => !shown.hidden.has(index));

function curveContent(curve) {
  const lines = visible().flatMap((index) => {
    const { line, held_out: heldOut } = curve.runs[index];
    const smoothed = line && (line.steps.length < 10 ? line.values : smooth(line.values, shown.weight, line.bins));
    return line || heldOut ? [{ index, line, heldOut, smoothed }] : [];
  });
  const x = extent(lines.flatMap(({ line, heldOut }) => [line, heldOut].flatMap((s) => (s ? extent(s.steps) : []))));
  const bands = curve.length ? bandsOf(lines.map(({ index }) => index)) : [];
  let [low, high] = extent([
    ...lines.flatMap(({ line, heldOut }) => [line, heldOut].flatMap((s) => (s ? extent(s.values) : []))),
    ...curve.bounds, ...bands.flat(),
  ]);
  if (curve.length || (low >= 0 && low < 0.35 * high)) low = Math.min(low, 0);
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  const y = [low === 0 ? 0 : low - room, curve.share && high <= 1 && high > 0.9 ? 1.02 : high + room];
  const shapes = (scale) => lines.map(({ index, line, heldOut, smoothed }) => svg("g", { class: color(index) },
    line && shown.weight > 0 && line.steps.length >= 10 ? svg("path", { class: "line raw", d: path(line.steps, line.values, scale) }) : null,
    line ? svg("path", { class: `line ${dash(index)}`, d: path(line.steps, smoothed, scale) }) : null,
    line && line.steps.length === 1 && line.values[0] !== null ? dots(line, scale) : null,
    heldOut && !line ? svg("path", { class: "line raw", d: path(heldOut.steps, heldOut.values, scale) }) : null,
    heldOut ? dots(heldOut, scale) : null));
  const told = (at) => {
    const series = lines.flatMap(({ line, heldOut }) => [line ?? heldOut]).filter((s) => s.steps.length);
    if (!series.length) return null;
    const near = series.map((s) => s.steps[nearest(s.steps, at)]);
    const step = near.reduce((best, one) => (Math.abs(one - at) < Math.abs(best - at) ? one : best));
    return { step, title: `step ${step}`, lines: lines.map((one) => tipLine(one, step)) };
  };
  return { x, y, bands, bounds: curve.bounds, shapes, told };
}

function tipLine({ index, line, heldOut, smoothed }, step) {
  const held = heldOut ? heldOut.values[heldOut.steps.indexOf(step)] : undefined;
  const place = line ? nearest(line.steps, step) : -1;
  const raw = line ? line.values[place] : undefined;
  const parts = [];
  if (line && raw === null) parts.push("no number");
  if (raw !== undefined && raw !== null) {
    parts.push(h("b", {}, text(smoothed[place])));
    if (smoothed[place] !== raw) parts.push(h("span", { class: "muted" }, ` (${text(raw)} recorded)`));
  }
  if (held !== undefined && held !== null) parts.push(`${parts.length ? ", " : ""}held out ${text(held)}`);
  return h("div", {}, h("span", { class: color(index) }, h("span", { class: "swatch" }), data.runs[index].label), "  ", parts);
}

const dots = (series, scale) => series.steps.map((step, i) => (series.values[i] === null ? null
  : svg("circle", { class: "dot", cx: scale.x(step), cy: scale.y(series.values[i]), r: 4 })));

function bandsOf(indices) {
  const found = new Map(indices.map((index) => data.runs[index].band).filter(Boolean).map((band) => [String(band), band]));
  return [...found.values()];
}

function curves() {
  const weight = h("output", {}, text(shown.weight));
  const slider = h("input", { type: "range", id: "smoothing", min: 0, max: 0.99, step: 0.01, value: shown.weight });
  slider.addEventListener("input", () => {
    shown.weight = Number(slider.value);
    weight.textContent = text(shown.weight);
    redraw();
  });
  const toggles = data.runs.length < 2 ? [] : data.runs.map((_, index) => {
    const box = h("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) shown.hidden.delete(index); else shown.hidden.add(index);
      redraw();
    });
    return h("label", { class: `toggle ${color(index)}` }, box, data.runs[index].label);
  });
  const cards = data.curves.map((curve) => {
    const chart = new Chart(() => curveContent(curve), { label: `${curve.name} over the steps` });
    charts.push(chart);
    return h("div", { class: "card" },
      h("h3", { title: curve.meaning }, curve.name, curve.unit ? h("span", { class: "muted small" }, ` ${curve.unit}`) : null),
      curve.meaning ? h("div", { class: "muted small" }, curve.meaning) : null, chart.element);
  });
  return [
    h("div", { class: "tools row" }, toggles, h("label", {}, "smoothing", slider, weight)),
    h("div", { class: "grid" }, cards),
    h("p", { class: "note" }, "Faint: as recorded. Points: evaluations on held-out prompts. Shaded: the length band. Dashed: the bounds within which a run is healthy. Smoothing is the exponential moving average of TensorBoard."),
  ];
}

let asked = 0;
function redraw() {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => charts.forEach((chart) => chart.draw()));
}

const FANS = [["max", "longest"], ["p95", "95th percentile"], ["p50", "median"], ["mean", "mean"], ["p5", "5th percentile"], ["min", "shortest"]];

function fan(index, most) {
  const { fan: series, band } = data.runs[index];
  const x = extent(Object.values(series).flatMap((s) => extent(s.steps)));
  const content = () => ({
    x, y: [0, most * 1.05], bands: band ? [band] : [],
    shapes: (scale) => [svg("g", { class: color(index) },
      series.min && series.max ? svg("path", { class: "area", d: area(series.min, series.max, scale) }) : null,
      series.p5 && series.p95 ? svg("path", { class: "area inner", d: area(series.p5, series.p95, scale) }) : null,
      series.p95 && !series.p5 ? svg("path", { class: "line raw", d: path(series.p95.steps, series.p95.values, scale) }) : null,
      series.p50 ? svg("path", { class: "line", d: path(series.p50.steps, series.p50.values, scale) }) : null,
      series.mean ? svg("path", { class: `line ${series.p50 ? "mean" : ""}`, d: path(series.mean.steps, series.mean.values, scale) }) : null)],
    told: (at) => {
      const any = Object.values(series)[0];
      const step = any.steps[nearest(any.steps, at)];
      const lines = FANS.filter(([name]) => series[name]).map(([name, called]) =>
        h("div", {}, `${called} `, h("b", {}, text(series[name].values[nearest(series[name].steps, step)]))));
      return { step, title: `step ${step}`, lines };
    },
  });
  const chart = new Chart(content, { height: 230, label: `lengths of the responses of ${data.runs[index].label}` });
  charts.push(chart);
  return chart.element;
}

function lengths() {
  const most = Math.max(...data.runs.flatMap((run) => Object.values(run.fan).flatMap((s) => extent(s.values))), ...data.runs.flatMap((run) => run.band ?? []), 1);
  const cards = data.runs.map((run, index) => {
    const bins = data.histograms.runs[index];
    const fans = Object.keys(run.fan).length > 0;
    if (!fans && !bins.length) return null;
    const drawn = bins.map((one) => h("div", {},
      h("div", { class: "small" }, h("b", {}, `step ${one.step}`), h("span", { class: "muted" }, ` mean ${text(one.mean)} of ${one.count}`)),
      h("div", { class: color(index) }, histogram(data.histograms.edges, one.bins, run.band, `lengths at step ${one.step}`)),
      one.shares ? h("div", { class: "small muted" }, Object.entries(one.shares).filter(([name, share]) => name === "in band" || share > 0)
        .map(([name, share]) => `${name}\u00a0${percent(share)}`).join(" · ")) : null));
    const told = run.fan.p5 ? "Line: median; dotted: mean; dark: 5th to 95th percentile; light: shortest to longest." : "Line: mean; faint: 95th percentile.";
    return h("div", { class: "card" }, h("div", { class: "row between" }, h("h3", {}, tag(index)), h("span", { class: "muted small" }, bandText(run.band))),
      fans ? [fan(index, most), h("div", { class: "muted small" }, `In training, tokens over steps. ${told}`)] : null,
      drawn.length ? [h("div", { class: "bins" }, drawn), h("div", { class: "muted small" }, "On held-out prompts: how many responses, over tokens. Shaded: the band.")] : null);
  }).filter(Boolean);
  return cards.length ? h("div", { class: "grid wide" }, cards) : null;
}

function compared() {
  return data.comparisons.map((comparison, place) => {
    const names = [data.runs[0].label, data.runs[place + 1].label];
    const rows = comparison.metrics.map((d) => h("tr", {},
      h("td", { class: "key" }, d.name),
      [d.first, d.second].map((value) => h("td", { class: "num" }, text(value))),
      h("td", { class: "num" }, signed(d.difference, text)),
      h("td", { class: "num" }, d.relative === null ? "" : signed(d.relative, percent)),
      h("td", {}, d.p_value === null ? "too few steps" : d.beyond_noise ? h("b", {}, "beyond noise") : h("span", { class: "muted" }, "within noise"))));
    const changes = comparison.config.map((change) => h("tr", {}, change.map((cell, i) => h("td", { class: i ? "value" : "key mono" }, cell))));
    const lists = [
      [`${comparison.identical.length} metrics are identical at every step, bit by bit`, comparison.identical],
      [`recorded by ${names[0]} only`, comparison.only_first],
      [`recorded by ${names[1]} only`, comparison.only_second],
    ].filter(([, list]) => list.length);
    return [
      h("p", {}, tag(place + 1), " against ", tag(0), comparison.same ? ": all that they recorded is identical, bit by bit" : ""),
      rows.length ? table(["metric", ...names, "difference", "relative", ""], rows, 1) : null,
      lists.map(([title, list]) => h("p", { class: "note" }, `${title}: ${list.join(", ")}`)),
      changes.length ? h("details", { open: changes.length < 12 }, h("summary", {}, `${changes.length} settings differ`),
        table(["setting", ...names], changes, 3)) : null,
    ];
  });
}

function table(heads, rows, texts) {
  const head = heads.map((title, i) => h("th", { class: i < texts ? null : "num" }, title));
  return h("div", { class: "scroll", tabindex: 0 }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

function events() {
  const cards = data.runs.map((run, index) => (run.events.length ? h("div", { class: "card" }, h("h3", {}, tag(index)),
    run.events_left_out ? h("div", { class: "muted small" }, `${run.events_left_out} earlier ones are left out`) : null,
    h("ul", { class: "events" }, run.events.map((event) => h("li", {}, h("span", { class: "muted" }, `${event.time.slice(0, 19).replace("T", " ")} `), h("b", {}, event.event), ` ${event.text}`)))) : null)).filter(Boolean);
  return cards.length ? h("div", { class: "grid wide" }, cards) : null;
}

function start() {
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });
  document.title = `${data.runs.map((run) => run.label).join(", ")} – rljax analyze`;
  section("verdict", "Verdict", verdicts());
  if (data.notes.length) document.getElementById("main").append(h("ul", { class: "note" }, data.notes.map((note) => h("li", {}, note))));
  if (data.comparisons.length) section("compare", "Differences", compared());
  section("curves", "Curves", curves());
  const [distributions, happened] = [lengths(), events()];
  if (distributions) section("lengths", "Lengths", distributions);
  section("summary", "Summary", summaries());
  if (data.samples.tables.length) section("samples", "Samples", explorer(data));
  if (happened) section("events", "Events", happened);
  document.getElementById("foot").append(`made by rljax ${data.version} analyze; this file loads nothing`);
  redraw();
}
start();
