// Sortable tables, and figures as SVG files. The page is complete without it.
document.querySelectorAll("thead button").forEach((button) =>
  button.addEventListener("click", () => {
    const th = button.closest("th"), body = th.closest("table").tBodies[0], column = th.cellIndex;
    const numeric = th.classList.contains("number");
    const first = numeric ? "descending" : "ascending";
    const order = th.getAttribute("aria-sort") === first ? (numeric ? "ascending" : "descending") : first;
    const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
    const key = (row) => row.cells[column].dataset.value;
    const missing = (row) => key(row) === "";
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...body.rows].sort((a, b) => missing(a) - missing(b) || sign * compare(key(a), key(b)));
    th.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", order);
    body.append(...rows);
  }),
);
document.querySelectorAll("a[data-svg]").forEach((link) => {
  link.hidden = false;
  link.addEventListener("click", () => {
    const svg = link.closest("figure").querySelector("svg").outerHTML.replace(/var\(--[\w-]+, (#\w+)\)/g, "$1");
    link.href = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svg);
  });
});
