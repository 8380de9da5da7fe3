/* The model table: rows are filtered by words and ordered by a column. */
"use strict";
(() => {
  const table = document.getElementById("models-table");
  const body = table.tBodies[0];
  const search = document.getElementById("models-search");
  const count = document.getElementById("models-count");
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));
  const order = new Intl.Collator("en", { numeric: true }).compare;

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} models`;
  }

  function sort(column) {
    const head = heads[column];
    const down = head.ariaSort === "ascending";
    for (const other of heads) other.ariaSort = "none";
    head.ariaSort = down ? "descending" : "ascending";
    const key = ({ row }) => {
      const { dataset, textContent } = row.cells[column];
      return dataset.value ?? textContent;
    };
    const keyed = rows.map((entry) => [key(entry), entry.row]);
    keyed.sort(([a], [b]) => (down ? order(b, a) : order(a, b)));
    body.append(...keyed.map(([, row]) => row));
  }

  search.addEventListener("input", filter);
  heads.forEach((head, column) =>
    head.querySelector("button").addEventListener("click", () => sort(column)),
  );
  // models.html#search=resnet is a link to a part of the table
  const start = new URLSearchParams(location.hash.slice(1)).get("search");
  if (start) {
    search.value = start;
    filter();
  }
})();
