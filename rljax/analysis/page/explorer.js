// The responses of the evaluations: chosen, searched, sorted, and shown a page at a time.

const PER_PAGE = 20;
const NEWEST = "newest";

function explorer(data) {
  const { prompts, tables, left_out: leftOut } = data.samples;
  const labels = data.runs.map((run) => run.label);
  const newest = new Map();
  for (const table of tables) newest.set(table.run, Math.max(newest.get(table.run) ?? 0, table.step));
  const rows = tables.flatMap((table) => table.response.map((_, i) => ({ table, i })));
  const of = ({ table, i }, name) => (table[name] ? table[name][i] : null);
  const promptOf = (row) => prompts[of(row, "prompt")];
  const steps = [...new Set(tables.map((table) => table.step))].sort((a, b) => a - b);
  const sources = [...new Set(rows.map((row) => of(row, "source")).filter((source) => source !== null))];

  let page = 0, found = rows;
  const state = { run: "", step: NEWEST, correct: "", verdict: "", kind: "", source: "", order: "", search: "" };
  const list = h("div", { id: "samples-list" });
  const count = h("span", { class: "muted small", id: "samples-count", "aria-live": "polite" });
  const back = h("button", { type: "button" }, "← before"), on = h("button", { type: "button" }, "next →");
  const where = h("span", { class: "muted small" });

  const FITS = {
    run: (row, value) => row.table.run === Number(value),
    step: (row, value) => row.table.step === (value === NEWEST ? newest.get(row.table.run) : Number(value)),
    correct: (row, value) => of(row, "correct") === (value === "yes"),
    verdict: (row, value) => (value === "truncated" ? of(row, "truncated") === true : of(row, "verdict") === value),
    kind: (row, value) => of(row, "greedy") === (value === "greedy"),
    source: (row, value) => of(row, "source") === value,
    search: (row, value) => `${promptOf(row)}\n${of(row, "response")}`.toLowerCase().includes(value),
  };
  const ORDERS = {
    "lowest reward": (row) => of(row, "reward_shaped") ?? Infinity,
    "highest reward": (row) => -(of(row, "reward_shaped") ?? -Infinity),
    longest: (row) => -of(row, "length_tokens"),
    shortest: (row) => of(row, "length_tokens"),
  };

  function choose() {
    const wanted = Object.entries(FITS).filter(([name]) => state[name] !== "");
    found = rows.filter((row) => wanted.every(([name, fits]) => fits(row, state[name])));
    if (state.order) {
      const by = new Map(found.map((row) => [row, ORDERS[state.order](row)]));
      found.sort((a, b) => by.get(a) - by.get(b));
    }
    page = 0;
    show();
  }

  function show() {
    const pages = Math.max(Math.ceil(found.length / PER_PAGE), 1);
    list.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
    count.textContent = `${found.length} of ${rows.length} responses`;
    where.textContent = `page ${page + 1} of ${pages}`;
    back.disabled = page === 0;
    on.disabled = page >= pages - 1;
  }

  function turn(by) {
    page += by;
    show();
    list.scrollIntoView({ block: "start" });
  }
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));

  function marked(content) {
    const wanted = state.search;
    if (!wanted) return content;
    const lower = content.toLowerCase(), parts = [];
    let from = 0;
    for (let at = lower.indexOf(wanted); at >= 0 && parts.length < 400; at = lower.indexOf(wanted, from)) {
      parts.push(content.slice(from, at), h("mark", {}, content.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    return [...parts, content.slice(from)];
  }

  function card(row) {
    const { table, i } = row;
    const verdict = of(row, "verdict"), correct = of(row, "correct");
    const chips = [
      h("span", { class: `name c${table.run % 7}` }, h("span", { class: "swatch" }), labels[table.run]),
      h("span", { class: "muted small" }, `step ${table.step}`),
      of(row, "greedy") === null ? null : h("span", { class: "chip" }, of(row, "greedy") ? "greedy" : "sampled"),
      of(row, "source") === null ? null : h("span", { class: "chip" }, of(row, "source")),
      correct === null ? null : h("span", { class: `chip ${correct ? "good" : "bad"}` }, correct ? "correct" : "wrong"),
      h("span", { class: `chip ${verdict === null ? "" : verdict === "in band" ? "good" : "bad"}` },
        `${of(row, "length_tokens")} tokens${verdict === null ? "" : `, ${verdict}`}`),
      of(row, "truncated") ? h("span", { class: "chip bad" }, "truncated") : null,
    ];
    const rewards = [
      ...Object.entries(table.rewards).map(([name, values]) => [name, values[i]]),
      ["raw", of(row, "reward_raw")], ["shaping", of(row, "shaping")], ["shaped", of(row, "reward_shaped")],
    ].filter(([, value]) => value !== null);
    return h("article", { class: "card sample" },
      h("div", { class: "row" }, chips),
      h("pre", { class: "prompt" }, marked(promptOf(row))),
      h("pre", { class: "response" }, marked(of(row, "response"))),
      rewards.length ? h("div", { class: "rewards" }, rewards.map(([name, value]) =>
        h("span", {}, h("span", { class: "muted" }, `${name} `), h("b", {}, text(value))))) : null);
  }

  function select(name, title, options) {
    const input = h("select", { name }, options.map(([value, shown]) => h("option", { value }, shown)));
    input.value = state[name];
    input.addEventListener("change", () => { state[name] = input.value; choose(); });
    return h("label", {}, title, input);
  }
  const has = (name) => tables.some((table) => table[name]?.some((value) => value !== null));
  const search = h("input", { type: "search", name: "search", placeholder: "in prompts and responses" });
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.search = search.value.toLowerCase(); choose(); }, 120);
  });
  const any = ["", "all"];
  const filters = [
    labels.length > 1 ? select("run", "run", [any, ...labels.map((label, i) => [i, label])]) : null,
    select("step", "step", [[NEWEST, "newest"], any, ...steps.map((step) => [step, step])]),
    has("correct") ? select("correct", "answer", [any, ["yes", "correct"], ["no", "wrong"]]) : null,
    select("verdict", "length", [any, ...(has("verdict") ? ["in band", "long", "short"] : []).map((v) => [v, v]), ["truncated", "truncated"]]),
    has("greedy") ? select("kind", "drawn", [any, ["sampled", "sampled"], ["greedy", "greedy"]]) : null,
    sources.length ? select("source", "source", [any, ...sources.map((source) => [source, source])]) : null,
    select("order", "order", [["", "as recorded"], ...Object.keys(ORDERS).map((order) => [order, order])]),
    h("label", { class: "wide" }, "search", search),
  ];
  choose();
  return [
    h("div", { class: "filters" }, filters),
    h("p", { class: "row between" }, count,
      leftOut ? h("span", { class: "muted small" }, `${leftOut} more are left out, for the size of this page`) : null),
    list,
    h("div", { class: "pager" }, back, where, on),
  ];
}
