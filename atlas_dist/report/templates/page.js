// A heat map is one stop of the Tab key; arrow keys move inside it. Without this script every cell is a stop.
for (const map of document.querySelectorAll("table.map")) {
  const cells = [...map.querySelectorAll("td[tabindex]")];
  const enter = (cell) => { for (const other of cells) other.tabIndex = other === cell ? 0 : -1; };
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  map.setAttribute("role", "grid");
  enter(cells[0]);
  map.addEventListener("focusin", (event) => { if (cells.includes(event.target)) enter(event.target); });
  map.addEventListener("keydown", (event) => {
    const from = event.target.closest("td[tabindex]"), step = steps[event.key];
    if (!from || !step) return;
    event.preventDefault();
    let row = from.parentNode.rowIndex + step[0], column = from.cellIndex + step[1];
    for (let next; (next = map.rows[row]?.cells[column]); row += step[0], column += step[1]) {
      if (cells.includes(next)) { next.focus(); return; }
    }
  });
}
