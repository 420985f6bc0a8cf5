"use strict";
(() => {
  const STEP = 200;
  const modules = [];
  for (const [pattern, values] of JSON.parse(document.getElementById("data").textContent)) {
    const parts = pattern.split("*");
    const numbers = parts.length - 1;
    for (let i = 0; i < values.length; i += numbers + 4) {
      let name = parts[0];
      for (let n = 0; n < numbers; n++) name += values[i + n] + parts[n + 1];
      const [relative, rms, largest, excess] = values.slice(i + numbers, i + numbers + 4);
      const sqnr = relative > 0 ? -20 * Math.log10(relative) : null;
      modules.push({ name, cells: [relative, sqnr, rms, largest, excess] });
    }
  }
  const digits = [(x) => x.toPrecision(4), (x) => x.toFixed(2), (x) => x.toPrecision(3),
    (x) => x.toPrecision(3), (x) => x.toFixed(2)];
  const body = document.querySelector(".errors tbody");
  const more = document.getElementById("more");
  const filter = document.getElementById("filter");
  let column = 0, falling = true, shown = STEP;

  const natural = new Intl.Collator("en", { numeric: true });
  const value = (module, key) => {
    const cell = module.cells[key];
    return cell === null ? (key === 1 ? -Infinity : Infinity) : cell;
  };
  const compare = (a, b) => {
    const order = column < 0 ? natural.compare(a.name, b.name)
      : value(a, column) - value(b, column) || natural.compare(b.name, a.name);
    return falling ? -order : order;
  };
  const draw = () => {
    const text = filter.value.trim().toLowerCase();
    const chosen = modules.filter((module) => module.name.toLowerCase().includes(text));
    chosen.sort(compare);
    body.replaceChildren(...chosen.slice(0, shown).map((module) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      module.name.split(/(?<=[.])/).forEach((part) => {
        head.append(part, document.createElement("wbr"));
      });
      row.append(head, ...module.cells.map((cell, i) => {
        const data = document.createElement("td");
        data.textContent = cell === null ? (i === 1 ? "" : "not finite") : digits[i](cell);
        return data;
      }));
      return row;
    }));
    more.hidden = chosen.length <= shown;
    const rest = chosen.length > shown ? `, ${shown} shown` : "";
    document.getElementById("count").textContent = `${chosen.length} of ${modules.length}${rest}`;
  };
  document.querySelectorAll(".errors thead th").forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      falling = column === i - 1 ? !falling : i > 0;
      column = i - 1;
      head.parentNode.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      draw();
    });
    head.replaceChildren(button);
  });
  filter.addEventListener("input", () => { shown = STEP; draw(); });
  more.addEventListener("click", () => { shown *= 4; draw(); });
  draw();
})();
