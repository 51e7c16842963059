"use strict";
(() => {
  const body = document.body;
  const live = body.hasAttribute("data-live");

  // What the reader has chosen outlives a reload of the live page.
  const remember = (name, value) => {
    try { if (live) sessionStorage.setItem(name, JSON.stringify(value)); } catch { /* no storage: nothing to remember */ }
  };
  const recall = (name) => {
    try { return live ? JSON.parse(sessionStorage.getItem(name)) : null; } catch { return null; }
  };

  const show = (metric) => {
    body.dataset.metric = metric;
    for (const button of document.querySelectorAll(".switch button")) {
      button.setAttribute("aria-pressed", String(button.dataset.metric === metric));
    }
    remember("metric", metric);
  };
  for (const button of document.querySelectorAll(".switch button")) {
    button.addEventListener("click", () => show(button.dataset.metric));
  }
  show(recall("metric") ?? body.dataset.metric);

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const told = cell.getAttribute(`data-${body.dataset.metric}`) ?? cell.getAttribute("data-value");
    return told === null ? cell.textContent.trim().toLowerCase() : told === "" ? null : Number(told);
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null); // what has no figure comes last
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const button of document.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const table = button.closest("table");
      const column = head.cellIndex;
      const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => [keyOf(row, column), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? compare(a, b) : sign * compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  }

  const reveal = () => {
    const target = location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null;
    if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();

  if (live) {
    for (const path of recall("open") ?? []) {
      const found = document.querySelector(`details[data-path="${CSS.escape(path)}"]`);
      if (found) found.open = true;
    }
    const position = recall("scroll");
    if (position !== null) scrollTo(0, position);
    const open = () => [...document.querySelectorAll("details[data-path][open]")].map((d) => d.dataset.path);
    setInterval(async () => {
      try {
        const answer = await fetch("version", { cache: "no-store" });
        if (answer.ok && (await answer.text()) !== body.dataset.live) {
          remember("open", open());
          remember("scroll", scrollY);
          location.reload();
        }
      } catch { /* the server has ended: what is shown stays */ }
    }, 5000);
  }
})();
