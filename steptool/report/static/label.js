"use strict";
const rows = JSON.parse(document.getElementById("steps").textContent);
const QUESTIONS = {
  succ_calling: ["Did the call work?", { no: 0, yes: 1 }],
  contribution: ["Did it serve the final answer?", { no: 0, partly: 0.5, yes: 1 }],
  is_solved: ["Was the task solved?", { no: 0, unsure: 0.5, yes: 1 }],
};
const COLUMNS = ["trajectory_id", "step", "succ_calling", "contribution", "is_solved", "labelled_by", "comment"];
const who = document.getElementById("who");
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
  const asked = row.asked.split(" ").filter(Boolean);
  if (asked.includes("is_solved")) element("p", row.answer ? `Answer: ${row.answer}` : "There is no answer.", box);
  for (const name of asked) question(row, name, box);
  if (!asked.length) return;
  const comment = element("textarea", "", box);
  Object.assign(comment, { rows: 1, placeholder: "Comment", value: labelOf(row).comment || "" });
  comment.setAttribute("aria-label", `Comment on step ${row.step + 1}`);
  comment.addEventListener("input", () => { labelOf(row).comment = comment.value; keep(); });
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
let box = null;
rows.forEach((row, place) => {
  if (!place || rows[place - 1].trajectory_id !== row.trajectory_id) {
    box = element("article", "", document.getElementById("episodes"));
    box.className = "episode";
    element("h2", `Episode ${document.querySelectorAll("article").length}`, box);
    element("blockquote", row.instruction, box);
  }
  step(row, box);
});
keep();
