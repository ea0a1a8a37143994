"use strict";
const { rows, tools, tools_of: toolsOf } = JSON.parse(document.getElementById("steps").textContent);
const QUESTIONS = {
  succ_calling: ["Did the call work?", { no: 0, yes: 1 }],
  contribution: ["Did it serve the final answer?", { no: 0, partly: 0.5, yes: 1 }],
  is_solved: ["Was the task solved?", { no: 0, unsure: 0.5, yes: 1 }],
};
const COLUMNS = ["trajectory_id", "step", "succ_calling", "contribution", "is_solved", "labelled_by", "comment"];
const who = document.getElementById("who");
const keys = document.getElementById("keys");
const KEY = "steptool labels " + rows.map((row) => row.trajectory_id).join(" ");
const kept = load();

function load() {
  try { return JSON.parse(localStorage.getItem(KEY)) || {}; } catch { return {}; }
}

function keep() {
  kept.who = who.value;
  try { localStorage.setItem(KEY, JSON.stringify(kept)); } catch { /* a browser may forbid it: the page still works */ }
  document.getElementById("count").textContent = `${labels().length} of ${rows.length} steps labelled`;
}

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

function labelOf(row) {
  return (kept[`${row.trajectory_id} ${row.step}`] ??= {});
}

function question(row, name, parent) {
  const [text, choices] = QUESTIONS[name];
  const group = element("fieldset", "", parent);
  element("legend", text, group);
  for (const [choice, value] of Object.entries({ ...choices, open: null })) {
    const label = element("label", "", group);
    const input = element("input", "", label);
    Object.assign(input, { type: "radio", name: `${row.trajectory_id} ${row.step} ${name}`, value: String(value) });
    input.checked = (labelOf(row)[name] ?? null) === value;
    input.addEventListener("change", () => { labelOf(row)[name] = value; keep(); });
    label.append(` ${choice}`);
  }
}

function step(row, parent) {
  const box = element("section", "", parent);
  element("h3", `Step ${row.step + 1}: ${row.tool || "(no call)"}`, box);
  if (row.arguments) element("pre", row.arguments, box);
  if (row.observation) element("pre", `→ ${row.observation}`, box);
  const names = row.asked.split(" ").filter(Boolean);
  if (names.includes("is_solved")) element("p", row.answer ? `Answer: ${row.answer}` : "There is no answer.", box);
  for (const name of names) question(row, name, box);
  if (!names.length) return;
  const label = element("label", `Comment on step ${row.step + 1} `, box);
  label.className = "comment";
  const comment = element("textarea", "", label);
  Object.assign(comment, { rows: 1, value: labelOf(row).comment || "" });
  comment.addEventListener("input", () => { labelOf(row).comment = comment.value; keep(); });
}

/* The tools that the model could call, folded away. */
function listTools(schemas, parent) {
  if (!schemas?.length) return;
  const box = element("details", "", parent);
  box.className = "tools";
  element("summary", `Tools of this task (${schemas.length})`, box);
  const list = element("dl", "", box);
  for (const { function: tool } of schemas) {
    element("dt", tool.name, list);
    const entry = element("dd", tool.description ?? "", list);
    const parameters = Object.entries(tool.parameters?.properties ?? {});
    if (!parameters.length) continue;
    const items = element("ul", "", entry);
    for (const [name, schema] of parameters) {
      const facts = [schema?.type, tool.parameters.required?.includes(name) ? "required" : "optional", schema?.description];
      element("li", `${name}: ${facts.filter(Boolean).join(", ")}`, items);
    }
  }
}

function labels() {
  return rows
    .map((row) => ({ trajectory_id: row.trajectory_id, step: row.step, labelled_by: who.value.trim(), ...labelOf(row) }))
    .filter((label) => ["succ_calling", "contribution", "is_solved"].some((name) => (label[name] ?? null) !== null));
}

/* A cell of the CSV. An apostrophe goes before text that a spreadsheet would run as a formula. */
function cell(value) {
  const text = String(value ?? "");
  const formula = typeof value === "string" && /^'*[=+\-@\t\r]/.test(text);
  return `"${formula ? "'" : ""}${text.replaceAll('"', '""')}"`;
}

function download(name, text, type) {
  if (!who.value.trim()) { who.focus(); alert("Enter your name first: labels come with who gave them."); return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

who.value = kept.who || "";
who.addEventListener("input", keep);
document.getElementById("json").addEventListener("click", () => download("labels.json", JSON.stringify(labels(), null, 1), "application/json"));
document.getElementById("csv").addEventListener("click", () => {
  const lines = [COLUMNS, ...labels().map((label) => COLUMNS.map((name) => label[name]))];
  download("labels.csv", lines.map((line) => line.map(cell).join(",")).join("\r\n"), "text/csv");
});

/* Keys answer the question that has the focus, or the first open one. */
const ANSWERS = { y: ["yes"], n: ["no"], p: ["partly", "unsure"], o: ["open"] };
const groups = () => [...document.querySelectorAll("fieldset")];
const isOpen = (group) => group.querySelector("input:checked").value === "null";

function focusGroup(group) {
  if (!group) return;
  group.querySelector("input:checked").focus({ preventScroll: true });
  group.scrollIntoView({ block: "center" });
}

function answer(group, choices) {
  const inputs = [...group.querySelectorAll("input")];
  const input = inputs.find((one) => choices.includes(one.parentElement.textContent.trim()));
  if (!input) return;
  input.click();
  focusGroup(groups()[groups().indexOf(group) + 1] ?? group);
}

addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.key === "Escape" && target.tagName === "TEXTAREA") focusGroup(target.closest("section").querySelector("fieldset"));
  const writes = target.tagName === "TEXTAREA" || target === who;
  if (writes || !keys.checked || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const focused = target.closest?.("fieldset");
  const current = focused ?? groups().find(isOpen) ?? groups()[0];
  const place = groups().indexOf(current);
  if (!current || !"jkynpoc".includes(key) || key.length !== 1) return;
  event.preventDefault();
  if (key === "j") focusGroup(focused ? groups()[place + 1] : current);
  else if (key === "k") focusGroup(groups()[place - 1]);
  else if (key === "c") current.closest("section").querySelector("textarea").focus();
  else answer(current, ANSWERS[key]);
});
keys.checked = kept.keys ?? true;
keys.addEventListener("change", () => { kept.keys = keys.checked; keep(); });
document.getElementById("bar").addEventListener("submit", (event) => event.preventDefault());

let box = null;
rows.forEach((row, place) => {
  if (!place || rows[place - 1].trajectory_id !== row.trajectory_id) {
    box = element("article", "", document.getElementById("episodes"));
    box.className = "episode";
    element("h2", `Episode ${document.querySelectorAll("article").length}`, box);
    element("blockquote", row.instruction, box);
    listTools(tools[toolsOf[row.trajectory_id]], box);
  }
  step(row, box);
});
keep();
