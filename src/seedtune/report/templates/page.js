// Draws the figures in the colors of the page, and filters the completions.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
async function draw(light) {
  const config = figures.themes[dark.matches && light !== true ? "dark" : "light"];
  for (const [id, spec] of Object.entries(figures.specs)) {
    const place = document.getElementById(id);
    if (place) await vegaEmbed(place, spec, { actions: false, renderer: "svg", config });
  }
  document.body.dataset.drawn = "yes";
}
dark.addEventListener("change", () => draw());
window.addEventListener("beforeprint", () => draw(true));  // paper is white
window.addEventListener("afterprint", () => draw());
draw();

const text = document.getElementById("filter-text"), kind = document.getElementById("filter-kind");
function filter() {
  const wanted = text.value.toLowerCase();
  let shown = 0;
  for (const item of document.querySelectorAll(".item")) {
    const fits = item.textContent.toLowerCase().includes(wanted) &&
      (!kind.value || item.dataset.kind.split(" ").includes(kind.value));
    item.hidden = !fits;
    shown += fits;
  }
  document.getElementById("filter-count").textContent = shown + " shown";
}
if (text) {
  text.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  filter();
}
const again = Number(document.body.dataset.refresh || 0);
if (again) setInterval(() => { if (!text || (!text.value && document.activeElement !== text)) location.reload(); }, again * 1000);
