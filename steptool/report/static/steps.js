/* Episodes as elements, for every page that shows them. Every text enters a page as text, never as markup. */
const Steps = (() => {
  const FOLD = 260;
  const MANY = 16;

  const el = (tag, className, ...children) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...children.filter((c) => c !== null && c !== undefined));
    return node;
  };
  const minus = (text) => text.replace("-", "\u2212");
  const short = (value) => minus(String(Math.round(value * 100) / 100));
  const signed = (value) => (value > 0 ? "+" : "") + short(value);
  const brief = (value) => {
    const text = Math.abs(value) < 0.995 ? Math.abs(value).toFixed(2).slice(1) : Math.abs(value).toFixed(1);
    return text === ".00" ? "0" : (value < 0 ? "\u2212" : "+") + text;
  };
  const tint = (value, scale) => {
    if (value === null || !scale) return "";
    const share = Math.min(1, Math.abs(value) / scale);
    const colour = value < 0 ? "var(--bad)" : "var(--good)";
    return value === 0 ? "" : `color-mix(in srgb, ${colour} ${Math.round(10 + share * 40)}%, var(--card))`;
  };
  const solvedText = (v) => (v === null ? "no verdict" : v > 0.5 ? (v < 1 ? "partly solved" : "solved") : "not solved");
  const steps = (number) => `${number} step${number === 1 ? "" : "s"}`;
  const solvedClass = (v) => (v === null ? "unknown" : v > 0.5 ? "yes" : "no");

  const chip = (label, value, scale, sign, title) => {
    const shown = value === null ? "\u2013" : sign ? signed(value) : short(value);
    const node = el("span", "chip" + (value === null ? " none" : ""), el("i", "", label), el("b", "", shown));
    node.style.background = tint(value, scale);
    node.title = title;
    return node;
  };

  const folded = (text, cut) => {
    const more = cut ? `\n\u2026 ${cut.toLocaleString("en")} more characters in the trajectories file` : "";
    if (text.length <= FOLD && !cut) return el("pre", "", text);
    const fold = el("details", "fold", el("summary", "", text.slice(0, 150).replace(/\s+/g, " ") + " \u2026"));
    fold.append(el("pre", "", text + more));
    return fold;
  };

  const card = (step, index, scale, last) => {
    const name = step.call === null ? "no call could be read" : step.call;
    const head = el("header", "", el("span", "index", String(index + 1)), el("code", "call", name),
      el("span", "status " + step.status, step.status.replace("_", " ")));
    const node = el("li", "step " + step.status, head);
    if (step.text) node.append(el("div", "said", folded(step.text, 0)));
    if (step.arguments.length) {
      const list = el("dl", "arguments");
      for (const [key, value] of step.arguments) list.append(el("dt", "", key), el("dd", "", folded(value, 0)));
      node.append(list);
    }
    if (step.observation) node.append(el("div", "observation", el("span", "arrow", "\u2192"), folded(step.observation, step.cut)));
    node.append(el("div", "chips",
      chip("call worked", step.succ_calling, 1, false, "SuccCalling: the call was well formed and the tool did not fail"),
      chip("helped", step.contribution, 1, false, "Contribution: how much this step served the final answer"),
      last ? chip("solved", step.is_solved, 1, false, "IsSolved: the verdict, on the last step only") : "",
      chip("reward", step.reward, scale.reward, true, "The reward that training used for this step"),
      chip("advantage", step.advantage, scale.advantage, true, "How much better or worse than expected the step turned out")));
    if (step.rationale) node.append(el("p", "rationale", step.rationale));
    return node;
  };

  const cell = (step, index, scale, target) => {
    const value = step.advantage ?? step.reward;
    const kind = step.advantage !== null ? "advantage" : "reward";
    const node = el("button", "cell " + step.status, value === null ? String(index + 1) : brief(value));
    node.type = "button";
    node.style.background = tint(value, scale[kind]);
    node.title = `step ${index + 1}: ${step.call ?? "no call"}, ${step.status.replace("_", " ")}` +
      (value === null ? "" : `, ${kind} ${signed(value)}`);
    node.addEventListener("click", () => {
      target.scrollIntoView({ block: "nearest", behavior: "smooth" });
      target.classList.add("flash");
      setTimeout(() => target.classList.remove("flash"), 900);
    });
    return node;
  };

  // The title of a side: a heading of this level, with the colour of its model where it has one.
  const titleOf = (level, text, colour) =>
    el("h" + level, "title", colour ? el("span", "swatch " + colour) : null, text);

  const side = (title, episode, scale) => {
    const node = el("section", "side", title);
    const calls = episode.steps.filter((s) => s.status !== "finish");
    const failed = calls.filter((s) => s.status !== "ok").length;
    node.append(el("p", "facts", el("span", "verdict " + solvedClass(episode.verdict), solvedText(episode.verdict)),
      ` in ${steps(episode.steps.length)}, ${failed} failed; ended: ${episode.stop.replace("_", " ")}; ${episode.origin}`));
    const cards = episode.steps.map((step, i) => card(step, i, scale, i === episode.steps.length - 1));
    node.append(el("div", "strip" + (cards.length > MANY ? " dense" : ""), ...episode.steps.map((step, i) => cell(step, i, scale, cards[i]))));
    node.append(el("p", "answer", el("i", "", "answer "), episode.answer === null ? "none" : episode.answer));
    node.append(el("ol", "steps", ...cards));
    return node;
  };

  // The reward of a last step is of another size: it does not set the scale of the others.
  const scaleOf = (episodes) => {
    const rewards = episodes.flatMap((e) => e.steps.slice(0, -1).map((s) => Math.abs(s.reward ?? 0)));
    const advantages = episodes.flatMap((e) => e.steps.map((s) => Math.abs(s.advantage ?? 0)));
    return { reward: Math.max(0, ...rewards) || 1, advantage: Math.max(0, ...advantages) };
  };

  return { el, side, titleOf, scaleOf, short, solvedText, solvedClass, steps, tint };
})();
