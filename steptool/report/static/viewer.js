/* The viewer: a list of trajectories to filter, and the chosen one step by step, alone or beside another of its task.
   Every text enters the page as text, never as markup. Episodes are rendered by steps.js. */
(async () => {
  const { el, side, titleOf, scaleOf, short, solvedText, solvedClass, steps, tint } = Steps;
  const HEIGHT = 66;      // of a row of the list, in pixels: see viewer.css
  const KEPT = 32;        // decoded chunks that stay in memory
  const LETTERS = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
  const [list, canvas, filters, count, detail] = ["list", "rows", "filters", "count", "detail"].map((id) => document.getElementById(id));
  if (!("DecompressionStream" in window)) {
    count.textContent = "This page needs a browser of 2023 or later.";
    return;
  }
  const chunks = [...document.querySelectorAll("script.chunk")];
  const paged = document.querySelector(".pages") !== null;  // several files share the trajectories

  const inflate = (node) => {
    const bytes = Uint8Array.from(atob(node.textContent), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  };
  const cache = new Map();
  const linesOf = (chunk) => {
    const found = cache.get(chunk) ?? inflate(chunks[chunk]).then((text) => text.split("\n"));
    cache.delete(chunk);
    cache.set(chunk, found);
    if (cache.size > KEPT) cache.delete(cache.keys().next().value);
    return found;
  };
  const recordOf = async (row) => JSON.parse((await linesOf(row.chunk))[row.line]);

  // The index: rows of trajectories, and what follows from them.
  const { models, colours, tools, queries, rows } = JSON.parse(await inflate(document.getElementById("index")));
  const several = models.length > 1;
  const mates = queries.map(() => []);
  const inChunk = chunks.map(() => []);
  rows.forEach((row, number) => {
    row.number = number;
    row.key = LETTERS[row.model] + ":" + row.id;
    row.outcome = solvedText(row.verdict);
    row.split = queries[row.query].split;
    row.tier = queries[row.query].tier;
    mates[row.query].push(row);
    inChunk[row.chunk].push(row);
  });
  for (const query of queries) query.words = (query.id + "\n" + query.text).toLowerCase();
  const ofModel = (row, model) => {
    if (model === row.model) return row;
    const others = mates[row.query].filter((r) => r.model === model);
    return others.find((r) => r.sample === row.sample && r.round === row.round) ?? others[0] ?? null;
  };
  const counterpart = (row) => models.map((_, model) => (model === row.model ? null : ofModel(row, model))).find(Boolean) ?? null;
  const [NONE, ALL] = models.length > 2 ? ["none", "all"] : ["neither", "both"];
  const comparison = (row) => {
    const tried = models.map((_, model) => ofModel(row, model)).filter(Boolean);
    if (tried.length < 2) return "only one model tried";
    if (tried.some((r) => r.verdict === null)) return "no verdict";
    const solved = tried.filter((r) => r.verdict > 0.5).map((r) => LETTERS[r.model]);
    return `solved by ${!solved.length ? NONE : solved.length === tried.length ? ALL : `${solved.join(", ")} only`}`;
  };
  for (const row of rows) row.compared = several ? comparison(row) : "";

  // The state is the address after #: a field that has its default is left out.
  const DEFAULTS = { query: "", trajectory: "", beside: "", model: several ? "A" : "", split: "", tier: "", round: "", outcome: "",
    compared: "", stop: "", tool: "", least: "", most: "", text: "", deep: "", order: "" };
  const state = { ...DEFAULTS };
  const fromAddress = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(DEFAULTS)) state[key] = given.get(key) ?? DEFAULTS[key];
    for (const [key, control] of Object.entries(controls)) {
      if (control.type === "checkbox") control.checked = state[key] !== ""; else control.value = state[key];
    }
  };
  const toAddress = () => {
    const kept = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  };

  // What the filters let through.
  const CHOICES = ["split", "tier", "round", "outcome", "compared", "stop"];
  const bound = (text, open) => (text.trim() === "" || Number.isNaN(Number(text)) ? open : Number(text));
  const deepHits = new Set();
  const wanted = () => {
    const text = state.text.trim().toLowerCase();
    const tool = state.tool.trim().toLowerCase();
    const named = tools.map((t) => t.toLowerCase().includes(tool));
    const least = bound(state.least, -Infinity), most = bound(state.most, Infinity);
    const bounded = least > -Infinity || most < Infinity;
    const chosen = CHOICES.filter((key) => state[key]);
    return (row) => chosen.every((key) => String(row[key]) === state[key]) &&
      (!several || state.model === "all" || LETTERS[row.model] === state.model) &&
      (!tool || row.tools.some((t) => named[t])) &&
      (!bounded || (row.reward !== null && row.reward >= least && row.reward <= most)) &&
      (!text || queries[row.query].words.includes(text) || row.id.toLowerCase().includes(text) || deepHits.has(row.number));
  };
  const by = (value) => (a, b) => value(a) - value(b) || a.number - b.number;
  const ORDERS = {
    lowest: ["lowest reward first", by((r) => r.reward ?? Infinity)],
    highest: ["highest reward first", by((r) => -(r.reward ?? -Infinity))],
    longest: ["most steps first", by((r) => -r.heat.length)],
    failed: ["most failed calls first", by((r) => -r.failed)],
  };
  let found = [];
  let selected = null;
  const filter = () => {
    found = rows.filter(wanted());
    if (ORDERS[state.order]) found.sort(ORDERS[state.order][1]);
    canvas.style.height = found.length * HEIGHT + "px";
    tell();
    draw();
  };
  let progress = "";
  const tell = () => {
    count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} trajectories${paged ? " on this page" : ""}${progress}`;
  };

  // The words of the steps are in the chunks: they are read one after the other, and hits appear as they are found.
  const wordsOf = ({ instruction, answer, episode }) => [instruction, answer, episode.answer, ...episode.steps.flatMap((s) =>
    [s.call, s.text, s.observation, s.rationale, ...s.arguments.flat()])].filter(Boolean).join("\n").toLowerCase();
  let search = 0;
  const searchSteps = async () => {
    const turn = ++search;
    const text = state.text.trim().toLowerCase();
    deepHits.clear();
    for (let chunk = 0; state.deep && text && chunk < chunks.length; chunk++) {
      const lines = await linesOf(chunk);
      if (turn !== search) return;
      for (const row of inChunk[chunk]) if (wordsOf(JSON.parse(lines[row.line])).includes(text)) deepHits.add(row.number);
      progress = `, ${Math.round(100 * (chunk + 1) / chunks.length)}% searched`;
      if (chunk % 8 === 7) filter();
    }
    progress = "";
    filter();
  };

  // The list holds only the rows in sight.
  const heat = (row) => {
    const scale = Math.max(0, ...row.heat.map((v) => Math.abs(v ?? 0)));
    const cells = row.heat.slice(0, 60).map((value) => {
      const node = el("i", "");
      node.style.background = tint(value, scale);
      return node;
    });
    const strip = el("span", "heat", ...cells);
    strip.setAttribute("aria-hidden", "true");
    return strip;
  };
  const entry = (row, place) => {
    const facts = [row.outcome, steps(row.heat.length), row.failed ? `${row.failed} failed` : null,
      row.reward === null ? null : `reward ${short(row.reward)}`, several && state.model === "all" ? LETTERS[row.model] : null];
    const node = el("div", "entry", el("span", "mark " + solvedClass(row.verdict)),
      el("span", "text", queries[row.query].text || queries[row.query].id),
      el("span", "facts", several ? el("span", "swatch " + colours[row.model]) : null, facts.filter(Boolean).join(" · ")), heat(row));
    node.id = "row-" + row.number;
    node.style.top = place * HEIGHT + "px";
    for (const [name, value] of Object.entries({ role: "option", "aria-selected": row === selected, "aria-posinset": place + 1, "aria-setsize": found.length })) node.setAttribute(name, value);
    node.addEventListener("click", () => choose(row));
    return node;
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - 3);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + 3);
    const shown = found.slice(first, last);
    canvas.replaceChildren(...shown.map((row, i) => entry(row, first + i)));
    if (!found.length) canvas.replaceChildren(el("p", "empty", "No trajectory fits these filters."));
    if (selected && shown.includes(selected)) list.setAttribute("aria-activedescendant", "row-" + selected.number);
    else list.removeAttribute("aria-activedescendant");
  };
  const reveal = (place) => {
    const top = place * HEIGHT;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + HEIGHT - list.clientHeight;
  };

  // The chosen trajectory.
  const nameOf = (row, record) => {
    const parts = [several ? `${LETTERS[row.model]}: ${record.policy}` : record.policy];
    if (mates[row.query].filter((r) => r.model === row.model).length > 1) parts.push(`sample ${row.sample + 1}`);
    return parts.join(", ");
  };
  const besideOf = (row) => (state.beside ? mates[row.query].find((r) => r.key === state.beside) ?? null : counterpart(row));
  const besideChoice = (row, beside) => {
    const others = mates[row.query].filter((r) => r !== row);
    if (!others.length) return null;
    const describe = (r) => `${several ? LETTERS[r.model] + ", " : ""}${r.round >= 0 ? `round ${r.round}, ` : ""}sample ${r.sample + 1}: ${r.outcome}`;
    const node = options([["none", "nothing"], ...others.map((r) => [r.key, describe(r)])]);
    node.value = beside ? beside.key : "none";
    node.addEventListener("change", () => { state.beside = node.value; toAddress(); show(); });
    return el("label", "beside", "Beside it ", node);
  };
  let showing = 0;
  const show = async () => {
    const turn = ++showing;
    const row = selected;
    const beside = besideOf(row);
    const pair = [row, beside].filter(Boolean).sort((a, b) => a.model - b.model || a.number - b.number);
    const records = await Promise.all(pair.map(recordOf));
    if (turn !== showing) return;
    const query = queries[row.query];
    const facts = el("p", "facts", [query.split, query.tier].filter(Boolean).join(" · ") + " ", el("code", "", query.id));
    const head = el("header", "task", facts, el("blockquote", "", records[0].instruction));
    if (records[0].answer !== null) head.append(el("p", "answer", el("i", "", "expected answer "), records[0].answer));
    head.append(besideChoice(row, beside) ?? "");
    const scale = scaleOf(records.map((r) => r.episode));
    detail.replaceChildren(head, el("div", "sides", ...records.map((r, i) => side(titleOf(2, nameOf(pair[i], r), colours[pair[i].model]), r.episode, scale))));
    detail.scrollTop = 0;
  };
  const choose = (row) => {
    if (row.query !== selected?.query) state.beside = "";
    selected = row;
    Object.assign(state, { query: queries[row.query].id, trajectory: row.id });
    toAddress();
    const place = found.indexOf(row);
    if (place >= 0) reveal(place);
    draw();
    return show();
  };
  const addressed = () => {
    const fits = (row) => (!state.query || queries[row.query].id === state.query) && (!state.trajectory || row.id === state.trajectory);
    return found.find(fits) ?? rows.find(fits);
  };
  const restore = () => {
    fromAddress();
    filter();
    const asked = state.query || state.trajectory;
    selected = (asked ? addressed() : found[0] ?? rows[0]) ?? null;
    if (selected) choose(selected);
    else detail.replaceChildren(el("p", "empty", asked ? `No trajectory of ${asked} is in this file${paged ? "; another page may hold it" : ""}.` : "This file holds no trajectories."));
    if (state.deep) searchSteps();
  };

  // Controls.
  const controls = {};
  const options = (pairs) => {
    const node = el("select", "");
    for (const [value, text] of pairs) {
      const option = el("option", "", text);
      option.value = value;
      node.append(option);
    }
    return node;
  };
  const control = (key, label, node, className) => {
    controls[key] = node;
    node.name = key;
    filters.append(el("label", className ?? "", label, node));
    node.addEventListener("input", () => {
      state[key] = node.type === "checkbox" ? (node.checked ? "1" : "") : node.value;
      toAddress();
      list.scrollTop = 0;
      if (key === "deep" || (key === "text" && state.deep)) searchSteps(); else filter();
    });
  };
  const choice = (key, label, every) => {
    const tally = new Map();
    for (const row of rows) tally.set(row[key], (tally.get(row[key]) ?? 0) + 1);
    if (tally.size < 2) return;
    const values = key === "round" ? [...tally.keys()].sort((a, b) => a - b) : [...tally.keys()];
    const worded = (v) => (v === "" ? "none" : v === -1 ? "evaluation" : String(v).replace("_", " "));
    control(key, label, options([["", every], ...values.filter((v) => v !== "").map((v) => [String(v), `${worded(v)} (${tally.get(v).toLocaleString("en")})`])]));
  };
  const input = (type, placeholder, step) => {
    const node = el("input", "");
    Object.assign(node, { type, placeholder, autocomplete: "off" });
    if (step) node.step = step;
    return node;
  };
  control("text", "Text", input("search", "words of the task, or an id"), "wide");
  control("deep", "in the steps too", input("checkbox", ""), "check");
  if (several) control("model", "Model", options([...models.map((m, i) => [LETTERS[i], m]), ["all", ALL]]));
  choice("split", "Split", "every split");
  choice("tier", "Tier", "every tier");
  choice("round", "Round", "every round");
  choice("outcome", "Outcome", "every outcome");
  if (several) choice("compared", "Compared", "any");
  choice("stop", "Ended", "any reason");
  const toolNames = el("datalist", "", ...tools.slice(0, 1000).map((t) => { const option = el("option", ""); option.value = t; return option; }));
  toolNames.id = "tools";
  filters.append(toolNames);
  const tool = input("search", "part of its name");
  tool.setAttribute("list", "tools");
  control("tool", "Tool called", tool);
  if (rows.some((r) => r.reward !== null)) {
    control("least", "Reward from", input("number", "any", "0.1"), "small");
    control("most", "to", input("number", "any", "0.1"), "small");
  }
  control("order", "Order", options([["", "as in the file"], ...Object.entries(ORDERS).map(([key, [text]]) => [key, text])]));
  filters.addEventListener("submit", (event) => event.preventDefault());

  list.addEventListener("scroll", draw);
  addEventListener("resize", draw);
  addEventListener("hashchange", restore);
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / HEIGHT) - 1);
    const at = found.indexOf(selected);
    const target = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: found.length - 1 }[event.key];
    if (target === undefined || !found.length) return;
    event.preventDefault();
    choose(found[Math.min(found.length - 1, Math.max(0, target))]);
  });
  restore();
})();
