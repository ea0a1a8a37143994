/* Tables with headings: a heading sorts its rows, and a table that is too wide for its place becomes a list of cards. */
(() => {
  const ORDERS = ["none", "ascending", "descending"];

  /* The number that a cell begins with, such as 35.5 of "35.5% (30 to 41)"; null for other text. */
  const numberOf = (text) => {
    const found = text.replaceAll(",", "").replaceAll("\u2212", "-").match(/^[<>=+ ]*(-?\d*\.?\d+)/);
    return found ? Number(found[1]) : null;
  };
  const textOf = (row, column) => row.cells[column].textContent.trim();
  const isMissing = (text) => text === "" || text === "\u2013" || text === "not measurable";

  /* Sorts by numbers where every cell begins with one. Missing values stay at the end in both directions. */
  const sort = (table, column, order) => {
    const [body] = table.tBodies;
    const texts = table.rowsAsWritten.map((row) => [row, textOf(row, column)]);
    const [missing, present] = [true, false].map((wanted) => texts.filter(([, text]) => isMissing(text) === wanted));
    const numeric = present.every(([, text]) => numberOf(text) !== null);
    const compare = (a, b) => (numeric ? numberOf(a) - numberOf(b) : a.localeCompare(b, "en", { numeric: true }));
    const sign = order === "descending" ? -1 : 1;
    present.sort(([, a], [, b]) => sign * compare(a, b));
    body.append(...(order === "none" ? table.rowsAsWritten : [...present, ...missing].map(([row]) => row)));
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      if (cell.ariaSort !== null) cell.ariaSort = place === column ? order : "none";
    });
    table.choice.value = order === "none" ? "" : `${column} ${order}`;
  };

  const addButtons = (table) => {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(table, column, ORDERS[(ORDERS.indexOf(cell.ariaSort) + 1) % 3]));
      cell.append(button);
      cell.ariaSort = "none";
    });
  };

  /* Cards have no headings to click: a list of orders takes their place. */
  const addChoice = (table) => {
    const label = document.createElement("label");
    const choice = document.createElement("select");
    choice.add(new Option("as written", ""));
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      for (const order of ORDERS.slice(1)) choice.add(new Option(`${cell.textContent}, ${order}`, `${column} ${order}`));
    });
    choice.addEventListener("change", () => {
      const [column, order] = choice.value.split(" ");
      sort(table, Number(column), order ?? "none");
    });
    label.className = "orders";
    label.append("Sort by ", choice);
    table.before(label);
    table.choice = choice;
  };

  /* Cards are no table to a browser: roles and labels say what their parts are. */
  const addRoles = (table) => {
    const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
    table.role = "table";
    for (const part of [table.tHead, ...table.tBodies, table.tFoot]) if (part) part.role = "rowgroup";
    for (const row of table.rows) {
      row.role = "row";
      [...row.cells].forEach((cell, column) => {
        cell.role = cell.tagName === "TD" ? "cell" : cell.scope === "col" ? "columnheader" : "rowheader";
        if (row.parentNode !== table.tHead) cell.dataset.label = headings[column];
      });
    }
  };

  const fit = (table) => {
    const place = table.parentElement;
    place.classList.remove("stacked");
    place.classList.toggle("stacked", table.scrollWidth > place.clientWidth);
  };

  for (const table of document.querySelectorAll(".scroll > table")) {
    if (!table.tHead || !table.tBodies.length) continue;
    table.rowsAsWritten = [...table.tBodies[0].rows];
    addRoles(table);
    addChoice(table);
    addButtons(table);
    new ResizeObserver(() => fit(table)).observe(table.parentElement);
  }
})();
