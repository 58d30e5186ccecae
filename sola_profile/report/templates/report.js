"use strict";
{
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const views = [];

  // marks that belong to a series vanish with it
  function withSeries(spec) {
    const layers = (spec.layer || []).map((layer) => {
      const values = (layer.data || {}).values || [];
      if (!values.length || !("series" in values[0])) return layer;
      const filter = { filter: "indexof(hidden, datum.series) < 0" };
      return { ...layer, transform: [...(layer.transform || []), filter] };
    });
    return { ...spec, layer: layers, params: [...(spec.params || []), { name: "hidden", value: [] }] };
  }

  for (const place of document.querySelectorAll(".chart")) {
    const spec = { ...withSeries(specs[place.dataset.chart]), width: "container", padding: 4 };
    spec.autosize = { type: "fit-x", contains: "padding" };
    vegaEmbed(place, spec, { actions: false, renderer: "svg", tooltip: { theme: "custom" } })
      .then((found) => { views.push(found.view); place.dataset.ready = "yes"; })
      .catch((error) => { place.textContent = `This chart can't be drawn: ${error.message}`; });
  }

  for (const button of document.querySelectorAll("[data-series]")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      for (const twin of document.querySelectorAll("[data-series]")) {
        if (twin.dataset.series === button.dataset.series) twin.setAttribute("aria-pressed", String(shown));
      }
      const hidden = [...document.querySelectorAll('[data-series][aria-pressed="false"]')].map((b) => b.dataset.series);
      for (const view of views) view.signal("hidden", hidden).runAsync();
    });
  }

  // "1.25 s" is more than "20.3 ms"; text without a number sorts as text
  const UNITS = { "µs": 1e-6, ms: 1e-3, s: 1, min: 60, KiB: 2 ** -10, MiB: 1, GiB: 2 ** 10, k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  function value(text) {
    const match = /^[^\d∞+−-]*([+−-]?[\d,]*\.?\d+|∞)(?:e([+-]?\d+))?\s*([^\d\s]*)/.exec(text);
    if (!match) return null;
    if (match[1] === "∞") return Infinity;
    const number = Number(match[1].replaceAll(",", "").replace("−", "-")) * 10 ** Number(match[2] || 0);
    return number * (UNITS[match[3]] || 1);
  }

  function compare(a, b) {
    const [x, y] = [value(a), value(b)];
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? 1 : -1;
    return a.localeCompare(b);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    // a blank first cell means "as above", which sorting would part
    let above = "";
    for (const row of body.rows) {
      if (row.cells[0].textContent) above = row.cells[0].textContent;
      row.dataset.first = above;
    }
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const row of body.rows) row.cells[0].textContent = row.dataset.first;
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a.cells[place].textContent, b.cells[place].textContent) * (down ? -1 : 1));
      body.append(...rows);
    }));
  }

  for (const select of document.querySelectorAll("select[data-filter]")) {
    const rows = select.closest("p").nextElementSibling.querySelectorAll("tbody tr");
    const apply = () => {
      for (const row of rows) row.hidden = row.cells[select.dataset.filter].textContent !== select.value;
    };
    select.addEventListener("change", apply);
    apply();
  }
}
