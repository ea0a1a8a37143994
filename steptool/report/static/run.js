/* The report's viewer: the same tasks before and after training. Episodes are rendered by steps.js. */
(() => {
  const source = document.getElementById("trajectories");
  const root = document.getElementById("viewer");
  if (!source || !root) return;
  const { tasks, outcomes } = JSON.parse(source.textContent);
  const sides = root.dataset.sides.split("|");
  const colours = ["c-warm_start", "c-steptool"];
  const { el, side, titleOf, scaleOf } = Steps;
  const state = { tier: "", outcome: "", text: "", selected: null };

  const show = (task) => {
    state.selected = task;
    const episodes = [task.before, task.after].filter((e) => e !== null);
    const scale = scaleOf(episodes);
    const label = el("p", "facts", el("span", "outcome " + task.outcome, outcomes[task.outcome]), ` ${task.tier} ${task.id}`);
    const head = el("header", "task", label, el("blockquote", "", task.instruction));
    if (task.answer !== null) head.append(el("p", "answer", el("i", "", "expected answer "), task.answer));
    const shown = [task.before, task.after].map((e, i) => (e === null ? null : side(titleOf(3, sides[i], colours[i]), e, scale)));
    detail.replaceChildren(head, el("div", "sides", ...shown));
    for (const button of list.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.task === task));
  };

  const matches = (task) =>
    (!state.tier || task.tier === state.tier) && (!state.outcome || task.outcome === state.outcome) &&
    (!state.text || (task.instruction + " " + task.id).toLowerCase().includes(state.text));

  const fill = () => {
    const found = tasks.filter(matches);
    list.replaceChildren(...found.map((task) => {
      const button = el("button", "entry", el("span", "mark " + task.outcome, ""), el("span", "text", task.instruction));
      button.type = "button";
      button.task = task;
      button.title = outcomes[task.outcome];
      button.addEventListener("click", () => show(task));
      return el("li", "", button);
    }));
    count.textContent = `${found.length} of ${tasks.length} tasks`;
    if (found.length) show(found.includes(state.selected) ? state.selected : found[0]);
    else detail.replaceChildren(el("p", "empty", "No task fits these filters."));
  };

  const select = (label, key, options) => {
    const node = el("select", "");
    for (const [value, text] of options) {
      const option = el("option", "", text);
      option.value = value;
      node.append(option);
    }
    node.addEventListener("change", () => { state[key] = node.value; fill(); });
    return el("label", "", label, node);
  };

  const tally = (key, value) => tasks.filter((t) => t[key] === value).length;
  const tiers = [...new Set(tasks.map((t) => t.tier))];
  const search = el("input", "");
  search.type = "search";
  search.placeholder = "words of the task";
  search.addEventListener("input", () => { state.text = search.value.trim().toLowerCase(); fill(); });

  const list = el("ol", "list");
  const count = el("p", "count");
  const detail = el("div", "detail");
  const filters = el("div", "filters",
    select("Outcome", "outcome", [["", "every outcome"], ...Object.entries(outcomes).filter(([k]) => tally("outcome", k))
      .map(([k, text]) => [k, `${text} (${tally("outcome", k)})`])]),
    select("Tier", "tier", [["", "every tier"], ...tiers.map((t) => [t, `${t || "no tier"} (${tally("tier", t)})`])]),
    el("label", "", "Search", search));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...list.querySelectorAll("button")];
    const next = step && buttons[buttons.indexOf(document.activeElement) + step];
    if (next) { event.preventDefault(); next.focus(); show(next.task); }
  });
  root.replaceChildren(filters, el("div", "browser", el("nav", "", count, list), detail));
  fill();
})();
